-- Divergence from view base at the first position, in every split; a row of view base does not differ from itself.
SELECT split, modality, view, NULL AS response_kind, subject_id, js_low, js_high
FROM firsts JOIN divergences USING (target_id)
WHERE against = 'base' AND pos = 0
UNION ALL BY NAME
SELECT split, modality, view, NULL AS response_kind, subject_id, 0 AS js_low, 0 AS js_high
FROM firsts
WHERE view = 'base'
