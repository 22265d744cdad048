-- Mean log-probability per token of the true answer (nats), its end of turn included; drop: less that in view base.
SELECT
    split, modality, view, response_kind, subject_id, sequence_logprob,
    sequence_logprob - base_sequence_logprob AS drop
FROM truths
