-- Divergence from the retain-only model (its rows of view base), of the teacher and of the base: at the first position,
-- and at all positions of reference rows.
SELECT
    split, modality, view, NULL AS response_kind, subject_id,
    CASE WHEN pos = 0 THEN js_low END AS js_low, CASE WHEN pos = 0 THEN js_high END AS js_high,
    CASE WHEN response_kind = 'reference' THEN js_low END AS js_low_forced,
    CASE WHEN response_kind = 'reference' THEN js_high END AS js_high_forced
FROM firsts JOIN divergences USING (target_id)
WHERE against = 'retain_only'
