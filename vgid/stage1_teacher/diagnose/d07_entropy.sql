-- Entropy of each position as a share of ln V: exact where the engine stored it (exact), else its bracket.
SELECT
    split, modality, view, response_kind, subject_id, entropy_low / most_entropy AS entropy_low,
    entropy_high / most_entropy AS entropy_high, is_exact AS exact
FROM picked JOIN positions USING (target_id)
