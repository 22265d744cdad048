-- D1 and D2 of the questions without an image.
SELECT split, modality, view, response_kind, subject_id, leaks AS told
FROM picked JOIN judged USING (target_id)
WHERE modality = 'text'
UNION ALL BY NAME
SELECT split, modality, view, response_kind, subject_id, path, base_path, first_fact
FROM truths
WHERE modality = 'text'
