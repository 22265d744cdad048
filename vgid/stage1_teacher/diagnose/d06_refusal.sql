-- said: a generated answer refuses. mass_low, mass_high: probability of all openers at the first position; openers that
-- are not stored there lie in the tail. undecided: between 0.2 and 0.8 for certain.
WITH masses AS (
    SELECT
        target_id, coalesce(sum(exp(topk_logprobs[1][i]::DOUBLE)) FILTER (is_opener), 0) AS low,
        CASE WHEN count(*) FILTER (is_opener) < (SELECT count(*) FROM openers)
            THEN exp(any_value(tail_logprob[1]::DOUBLE)) ELSE 0 END AS unseen
    FROM (
        SELECT
            target_id, topk_logprobs, tail_logprob, i,
            topk_ids[1][i] IN (SELECT token_id FROM openers) AS is_opener
        FROM (SELECT *, unnest(generate_series(1, len(topk_ids[1]))) AS i FROM targets SEMI JOIN firsts USING (target_id))
    )
    WHERE (SELECT count(*) FROM openers) > 0
    GROUP BY target_id
)
SELECT split, modality, view, response_kind, subject_id, refuses AS said
FROM picked JOIN judged USING (target_id)
UNION ALL BY NAME
SELECT
    split, modality, view, NULL AS response_kind, subject_id, low AS mass_low, low + unseen AS mass_high,
    low > 0.2 AND low + unseen < 0.8 AS undecided
FROM firsts JOIN masses USING (target_id)
