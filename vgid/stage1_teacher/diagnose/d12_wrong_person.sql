-- told_other: a generated answer tells a fact of somebody else and none of its own. top_other: the likeliest token where
-- the first fact stands begins a fact of somebody else.
SELECT split, modality, view, response_kind, subject_id, leaks_other AND NOT leaks AS told_other
FROM picked JOIN judged USING (target_id)
UNION ALL BY NAME
SELECT
    split, modality, view, response_kind, subject_id,
    top_id <> truths.first_id AND coalesce(lowest <> subject_id OR highest <> subject_id, false) AS top_other
FROM truths LEFT JOIN (
    SELECT first_id, min(subject_id) AS lowest, max(subject_id) AS highest FROM truths GROUP BY first_id
) AS owners ON owners.first_id = truths.top_id
