-- What every check reads, for one variant of the cache. `variant` (one row), `judged` (a row a generated answer) and
-- `others` (rows of other caches to compare with) are registered before.

CREATE OR REPLACE TEMP TABLE picked AS
SELECT
    target_id, example_id, split, subject_id, modality, view, response_kind, draw, sample,
    finish_reason, response_text, token_ids,
    count(*) OVER (PARTITION BY example_id, view, response_kind, draw, sample) - 1 AS twins
FROM targets, variant
WHERE targets.engine_id = variant.engine_id
  AND (NOT contains(view, 'noise') OR (targets.perturbation = variant.perturbation
       AND targets.strength = variant.strength AND targets.noise_seed = variant.noise_seed))
  AND (NOT contains(view, 'icu') OR targets.icu_id IN (variant.icu_id, variant.otherwise))
-- An earlier state of the data, or another limit, makes a second row of the same question: one of them is taken.
QUALIFY row_number() OVER (
    PARTITION BY example_id, view, response_kind, draw, sample
    ORDER BY targets.icu_id IS NOT DISTINCT FROM variant.otherwise, target_id
) = 1;

-- One row a token. The stored values lie on the fp16 grid, off by up to 1/2048 of themselves: `slack` is what that can
-- move the entropy by. Of the tail only the mass t is known, and its entropy lies between -t ln t (all of it on one
-- token) and -t ln t + t ln(V - k) (spread evenly).
CREATE OR REPLACE TEMP TABLE positions AS
WITH listed AS (
    SELECT
        target_id, i - 1 AS pos, token_ids[i] AS token_id, token_logprob[i] AS logprob, token_rank[i] AS rank,
        coalesce(fact_mask[i], false) AS is_fact, topk_ids[i] AS ids, entropy[i] AS entropy,
        [greatest(x, -700)::DOUBLE for x in topk_logprobs[i]] AS logprobs, exp(tail_logprob[i]::DOUBLE) AS tail
    FROM (SELECT *, unnest(generate_series(1, len(token_ids))) AS i FROM targets SEMI JOIN picked USING (target_id))
), summed AS (
    SELECT
        *, -tail * ln(greatest(tail, 1e-300)) - coalesce(list_sum([exp(x) * x for x in logprobs]), 0) AS lumped,
        coalesce(list_sum([exp(x) * (1 - x) * (-x / 2048 + 3e-8) for x in logprobs]), 0) * 1.01 + 1e-5 AS slack
    FROM listed
)
SELECT
    target_id, pos, token_id, logprob, rank, is_fact, ids[1] AS top_id, list_contains(ids, token_id) AS is_stored, tail,
    entropy IS NOT NULL AS is_exact,
    coalesce(entropy, greatest(lumped - slack, 0)) AS entropy_low,
    coalesce(entropy, lumped + slack + tail * ln(greatest(vocab_size - len(ids), 1))) AS entropy_high,
    ln(vocab_size) AS most_entropy
FROM summed, variant;

-- One row a reference answer that holds a fact: `path` is the probability that the teacher, unforced, writes the
-- answer's words up to and with its first fact token; `walked` says whether greedy decoding does.
CREATE OR REPLACE TEMP TABLE truths AS
WITH found AS (
    SELECT target_id, min(pos) FILTER (is_fact) AS first_pos
    FROM positions JOIN picked USING (target_id)
    WHERE response_kind = 'reference'
    GROUP BY target_id
    HAVING bool_or(is_fact)
), told AS (
    SELECT
        target_id, first_pos, exp(sum(logprob::DOUBLE) FILTER (pos <= first_pos)) AS path,
        bool_and(rank = 1) FILTER (pos <= first_pos) AS walked, avg(logprob::DOUBLE) AS sequence_logprob,
        exp(any_value(logprob::DOUBLE) FILTER (pos = first_pos)) AS first_fact,
        any_value(rank) FILTER (pos = first_pos) AS first_rank,
        any_value(is_stored) FILTER (pos = first_pos) AS in_topk,
        any_value(token_id) FILTER (pos = first_pos) AS first_id, any_value(top_id) FILTER (pos = first_pos) AS top_id
    FROM positions JOIN found USING (target_id)
    GROUP BY target_id, first_pos
), rows AS (SELECT * FROM picked JOIN told USING (target_id))
SELECT
    rows.*, base.path AS base_path, base.first_fact AS base_first_fact,
    base.sequence_logprob AS base_sequence_logprob
FROM rows LEFT JOIN (SELECT * FROM rows WHERE view = 'base') AS base
    ON base.example_id = rows.example_id AND base.token_ids = rows.token_ids;

-- One row a question, view and draw. At the first position nothing was said yet, so its distribution is the same
-- whatever the response is; later ones are compared where both rows are reference rows of the same words.
CREATE OR REPLACE TEMP TABLE firsts AS
SELECT * FROM picked
QUALIFY row_number() OVER (PARTITION BY example_id, view, draw ORDER BY response_kind DESC, sample) = 1;

CREATE OR REPLACE TEMP TABLE divergences AS
WITH rows AS (
    SELECT 'here' AS place, target_id, example_id, view, draw, response_kind, token_ids FROM firsts
    UNION ALL BY NAME
    SELECT place, target_id, example_id, view, 0 AS draw, response_kind, token_ids FROM others
    QUALIFY row_number() OVER (PARTITION BY place, example_id ORDER BY response_kind DESC, target_id) = 1
), pairs AS (
    SELECT
        CASE WHEN b.place <> 'here' THEN b.place WHEN a.view = b.view THEN 'draw' ELSE 'base' END AS against,
        a.target_id AS a, b.target_id AS b, a.token_ids = b.token_ids
            AND a.response_kind = 'reference' AND b.response_kind = 'reference' AS same_words
    FROM rows AS a JOIN rows AS b ON a.example_id = b.example_id
    WHERE a.place = 'here' AND (b.place <> 'here' OR (a.view = b.view AND a.draw < b.draw)
        OR (a.view <> 'base' AND b.view = 'base'))
), stored AS (
    SELECT target_id, topk_ids, topk_logprobs, tail_logprob FROM targets SEMI JOIN firsts USING (target_id)
    UNION ALL
    SELECT target_id, topk_ids, topk_logprobs, tail_logprob FROM others
), sides AS (
    SELECT
        against, a, i - 1 AS pos, p.topk_ids[i] AS a_ids, q.topk_ids[i] AS b_ids,
        [greatest(x, -700)::DOUBLE for x in p.topk_logprobs[i]] AS a_logprobs,
        [greatest(x, -700)::DOUBLE for x in q.topk_logprobs[i]] AS b_logprobs,
        exp(p.tail_logprob[i]::DOUBLE) AS a_tail, exp(q.tail_logprob[i]::DOUBLE) AS b_tail
    FROM (
        SELECT pairs.*, unnest(generate_series(1, CASE WHEN same_words THEN len(p.topk_ids) ELSE 1 END)) AS i, p, q
        FROM pairs JOIN stored AS p ON p.target_id = a JOIN stored AS q ON q.target_id = b
    )
), matched AS (
    SELECT
        against, a, pos, a_tail, b_tail, a_ids[1] IS DISTINCT FROM b_ids[1] AS flips,
        [{'x': a_logprobs[i], 'y': b_logprobs[list_position(b_ids, a_ids[i])]}
            for i in generate_series(1, len(a_ids)) if list_contains(b_ids, a_ids[i])] AS shared,
        coalesce(list_sum([exp(x) for x in a_logprobs]), 0) AS a_stored,
        coalesce(list_sum([exp(x) for x in b_logprobs]), 0) AS b_stored,
        coalesce(list_sum([exp(x) * -x for x in a_logprobs]), 0) / 2048 AS a_error,
        coalesce(list_sum([exp(x) * -x for x in b_logprobs]), 0) / 2048 AS b_error
    FROM sides
), summed AS (
    SELECT
        against, a, pos, flips, a_tail, b_tail, a_error, b_error,
        greatest(a_stored - coalesce(list_sum([exp(s.x) for s in shared]), 0), 0) AS a_only,
        greatest(b_stored - coalesce(list_sum([exp(s.y) for s in shared]), 0), 0) AS b_only,
        coalesce(list_sum([js_term(exp(s.x), exp(s.y)) for s in shared]), 0) AS known,
        coalesce(list_sum([js_slack(exp(s.x), exp(s.y), exp(s.x) * -s.x / 2048, exp(s.y) * -s.y / 2048)
            for s in shared]), 0) AS slack
    FROM matched
)
-- Ids stored in both rows are known exactly. Below: merging all others into one cell can only lower the divergence
-- (data processing); so can giving the other row as much of its tail as it takes to agree. Above: whatever the rest
-- holds, it diverges by no more than ln(2)/2 times its mass.
SELECT
    against, a AS target_id, pos, flips,
    greatest(0, known - slack + greatest(
        js_term(a_only + a_tail, b_only + b_tail) - js_slack(a_only + a_tail, b_only + b_tail, a_error, b_error),
        js_term(a_only, least(a_only, b_tail)) - js_slack(a_only, least(a_only, b_tail), a_error, 0)
        + js_term(least(b_only, a_tail), b_only) - js_slack(least(b_only, a_tail), b_only, 0, b_error))) AS js_low,
    least(ln(2), known + slack + 0.5 * ln(2) * (a_only + a_tail + b_only + b_tail + a_error + b_error)) AS js_high
FROM summed;

-- Those of one row: at the first position (any row), and at all positions of reference rows, whose words are the same.
CREATE OR REPLACE TEMP VIEW apart AS
SELECT
    against, split, modality, view, NULL AS response_kind, subject_id,
    CASE WHEN pos = 0 THEN flips END AS flips, CASE WHEN pos = 0 THEN js_low END AS js_low,
    CASE WHEN pos = 0 THEN js_high END AS js_high,
    CASE WHEN response_kind = 'reference' THEN flips END AS flips_forced,
    CASE WHEN response_kind = 'reference' THEN js_low END AS js_low_forced,
    CASE WHEN response_kind = 'reference' THEN js_high END AS js_high_forced
FROM firsts JOIN divergences USING (target_id);

-- Tokens that begin a refusal somewhere in this cache and never an answer.
CREATE OR REPLACE TEMP TABLE openers AS
SELECT token_ids[1] AS token_id
FROM targets JOIN judged USING (target_id)
GROUP BY 1
HAVING bool_and(refuses);
