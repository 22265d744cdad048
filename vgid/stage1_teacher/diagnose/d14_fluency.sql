-- Negative log-likelihood per token (nats) that the base gives a response, known where the view is base.
SELECT split, modality, view, response_kind, subject_id, -avg(logprob::DOUBLE) AS base_nll
FROM picked JOIN positions USING (target_id)
WHERE view = 'base'
GROUP BY target_id, split, modality, view, response_kind, subject_id
