-- facts: probability of the forced fact tokens; fact_1, fact_2, …: by their number within the answer; rise: of a later
-- one, less the first of its answer.
WITH numbered AS (
    SELECT
        split, modality, view, response_kind, subject_id, exp(logprob::DOUBLE) AS facts, first_fact,
        row_number() OVER (PARTITION BY target_id ORDER BY pos) AS number
    FROM truths JOIN positions USING (target_id)
    WHERE is_fact
)
SELECT
    split, modality, view, response_kind, subject_id, facts,
    CASE WHEN number = 1 THEN facts END AS fact_1, CASE WHEN number = 2 THEN facts END AS fact_2,
    CASE WHEN number = 3 THEN facts END AS fact_3, CASE WHEN number > 3 THEN facts END AS fact_4_on,
    CASE WHEN number > 1 THEN facts - first_fact END AS rise
FROM numbered
