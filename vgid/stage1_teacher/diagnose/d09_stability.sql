-- Every pair of draws of one question: whether the likeliest token differs, and the bounds of the divergence; at the
-- first position (any row), and at all positions (reference rows, where the words are the same).
SELECT
    split, modality, view, NULL AS response_kind, subject_id,
    CASE WHEN pos = 0 THEN flips END AS flips, CASE WHEN pos = 0 THEN js_low END AS js_low,
    CASE WHEN pos = 0 THEN js_high END AS js_high,
    CASE WHEN response_kind = 'reference' THEN flips END AS flips_forced,
    CASE WHEN response_kind = 'reference' THEN js_low END AS js_low_forced,
    CASE WHEN response_kind = 'reference' THEN js_high END AS js_high_forced
FROM firsts JOIN divergences USING (target_id)
WHERE against = 'draw'
