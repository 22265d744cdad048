-- A generated answer that is empty (its first token ends the turn), cut at the limit, or says one token four times
-- running; degenerate: any of these. commonest: it is its view's commonest answer.
WITH answers AS (
    SELECT
        *, trim(response_text) = ''
            OR token_ids[1] IN (SELECT token_id FROM vocabulary WHERE "end") AS empty,
        finish_reason = 'length' AS cut,
        len([i for i in generate_series(1, len(token_ids) - 3)
            if len(list_distinct(token_ids[i : i + 3])) = 1]) > 0 AS repeats,
        mode(response_text) OVER (PARTITION BY split, modality, view) = response_text AS commonest
    FROM picked
    WHERE response_kind = 'generated'
)
SELECT
    split, modality, view, response_kind, subject_id, empty, cut, repeats, empty OR cut OR repeats AS degenerate,
    commonest
FROM answers
