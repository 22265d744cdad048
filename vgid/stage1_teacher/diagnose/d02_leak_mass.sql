-- path: probability of the true answer's words from the start to the first fact token; base_path: the same question's
-- in view base. first_fact: of that token alone, the words before it forced; later_facts: of those after it.
SELECT split, modality, view, response_kind, subject_id, path, base_path, first_fact, base_first_fact
FROM truths
UNION ALL BY NAME
SELECT split, modality, view, response_kind, subject_id, exp(logprob::DOUBLE) AS later_facts
FROM truths JOIN positions USING (target_id)
WHERE is_fact AND pos > first_pos
