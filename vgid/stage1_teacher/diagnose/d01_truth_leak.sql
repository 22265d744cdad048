-- told: a generated answer tells one of its question's facts. in_topk: the first fact token, its words before it
-- forced, is among the stored candidates.
SELECT split, modality, view, response_kind, subject_id, leaks AS told
FROM picked JOIN judged USING (target_id)
UNION ALL BY NAME
SELECT split, modality, view, response_kind, subject_id, in_topk FROM truths
