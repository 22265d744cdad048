-- walked: greedy decoding writes the true answer up to its first fact token. rank and rank_1: of that token among the
-- vocabulary, the words before it forced.
SELECT split, modality, view, response_kind, subject_id, walked, first_rank AS rank, first_rank = 1 AS rank_1
FROM truths
