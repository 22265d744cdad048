-- Probability outside the stored candidates, at every position.
SELECT split, modality, view, response_kind, subject_id, tail FROM picked JOIN positions USING (target_id)
