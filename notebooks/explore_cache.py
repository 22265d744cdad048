"""A cache of teacher targets, to click through; docs/sql.md asks the same as single queries.

    marimo run --token notebooks/explore_cache.py -- --cache runs/views

Every table is one query through `vgid.cache.sql`, so the notebook can read the committed files of one cache and nothing
else, and can change nothing. What it shows is what somebody wants forgotten.
"""

import marimo

app = marimo.App(width="full", app_title="A cache of teacher targets")


@app.cell
def _():
    import marimo as mo

    from vgid.cache.sql import run_sql
    from vgid.errors import VgidError

    return VgidError, mo, run_sql


@app.cell
def _(mo):
    given = mo.cli_args().get("cache")
    cache = mo.ui.text(value=str(given or "runs/demo/cache"), label="Cache", full_width=True)
    mo.vstack([mo.md("# What will the teacher teach?"), cache])
    return (cache,)


@app.cell
def _(VgidError, cache, mo, run_sql):
    def ask(query):
        """Rows of one query, sandboxed and limited as `vgid sql` is."""
        return run_sql(cache.value, query, timeout_s=300, memory="50%")

    def show(query):
        """A table of them."""
        return mo.ui.table(ask(query).to_pylist(), selection=None, page_size=12, show_data_types=False)

    def quoted(text):
        """A string for SQL: names come from the data, which may hold quotes."""
        return "'" + text.replace("'", "''") + "'"

    about, problem = {}, ""
    try:
        (about,) = ask("SELECT number, rows, tokens, plan->>'model' AS model FROM manifest").to_pylist()
    except VgidError as error:
        problem = str(error)
    mo.stop(bool(problem), mo.callout(problem, kind="danger"))
    mo.md("Manifest {number}: {rows:,} targets with {tokens:,} tokens, by `{model}`".format_map(about))
    return ask, quoted, show


@app.cell
def _(mo, show):
    mo.vstack(
        [
            mo.md("## What is in it"),
            show(
                """
                SELECT split, view, modality, response_kind, count(*) AS targets,
                    count(DISTINCT subject_id) AS subjects, sum(len(token_ids))::BIGINT AS tokens,
                    count(*) FILTER (finish_reason = 'length') AS cut
                FROM targets GROUP BY ALL ORDER BY ALL
                """
            ),
        ]
    )
    return


@app.cell
def _(ask, mo):
    splits = ask("SELECT DISTINCT split FROM targets ORDER BY split = 'forget' DESC, split")["split"].to_pylist()
    split = mo.ui.dropdown(splits, value=splits[0] if splits else None, label="Split")
    mo.stop(not splits, mo.callout("The cache holds no target yet."))
    mo.vstack([mo.md("## What does the teacher say instead?"), split])
    return (split,)


@app.cell
def _(quoted, show, split):
    show(
        f"""
        SELECT view, modality, response_text, count(*) AS answers,
            round(avg(list_avg(token_logprob)), 3) AS mean_logprob
        FROM targets WHERE split = {quoted(split.value)} AND response_kind = 'generated'
        GROUP BY ALL ORDER BY answers DESC, view, modality, response_text
        """
    )
    return


@app.cell
def _(ask, mo, quoted, split):
    names = f"SELECT DISTINCT example_id FROM targets WHERE split = {quoted(split.value)} ORDER BY example_id"
    examples = ask(names)["example_id"].to_pylist()
    example = mo.ui.dropdown(examples, value=examples[0], label="Question", searchable=True)
    mo.vstack([mo.md("## One question in all of its views"), example])
    return (example,)


@app.cell
def _(ask, example, mo, quoted):
    views = ask(
        f"""
        SELECT view, response_kind, draw, sample, response_text, finish_reason,
            round(list_avg(token_logprob), 3) AS mean_logprob, round(list_max(token_rank), 0) AS worst_rank, target_id
        FROM targets WHERE example_id = {quoted(example.value)} ORDER BY response_kind DESC, view, draw, sample
        """
    ).to_pylist()
    labels = [" · ".join((row["view"], row["response_kind"], str(row["draw"]), str(row["sample"]))) for row in views]
    response = mo.ui.dropdown(
        {label: row["target_id"] for label, row in zip(labels, views, strict=True)},
        value=labels[0],
        label="Token by token (view · kind · draw · sample)",
    )
    columns = [name for name in views[0] if name != "target_id"]
    shown = [{name: row[name] for name in columns} for row in views]
    mo.vstack([mo.ui.table(shown, selection=None, show_data_types=False), response])
    return (response,)


@app.cell
def _(mo, quoted, response, show):
    mo.vstack(
        [
            show(
                f"""
                SELECT pos, token_text AS token, is_fact AS fact, round(exp(token_logprob), 4) AS probability,
                    token_rank AS rank, round(entropy::DOUBLE, 3) AS entropy, round(tail_mass, 4) AS tail, likeliest
                FROM tokens JOIN (
                    SELECT pos, string_agg(printf('%s %.3g', text, probability), ' | ' ORDER BY rank) AS likeliest
                    FROM (SELECT *, coalesce(candidate_text, candidate_id::VARCHAR) AS text FROM candidates)
                    WHERE target_id = {quoted(response.value)} AND rank <= 5
                    GROUP BY pos
                ) USING (pos)
                WHERE target_id = {quoted(response.value)} ORDER BY pos
                """
            ),
            mo.md("Entropy is empty where the engine (vLLM) does not see all logits, fact in `generated` answers."),
        ]
    )
    return


@app.cell
def _(mo, quoted, show, split):
    mo.vstack(
        [
            mo.md(
                "## Where does the truth still leak?\n\nThe true answer, forced: the probability of the tokens that "
                "carry a fact, by their place in it. The words before may give it away. Empty without `reference` rows."
            ),
            show(
                f"""
                SELECT view, pos, count(*) AS fact_tokens, round(avg(exp(token_logprob)), 3) AS probability,
                    rtrim(bar(avg(exp(token_logprob)), 0, 1, 20)) AS bar, median(token_rank) AS median_rank,
                    count(*) FILTER (token_rank = 1) AS first_choice
                FROM tokens WHERE split = {quoted(split.value)} AND is_fact GROUP BY ALL ORDER BY view, pos
                """
            ),
        ]
    )
    return


@app.cell
def _(mo, quoted, show, split):
    mo.vstack(
        [
            mo.md("## Whose tail is heaviest?\n\nProbability outside the stored candidates, by subject and view."),
            show(
                f"""
                SELECT subject_id, view, response_kind, count(DISTINCT target_id) AS targets,
                    round(avg(tail_mass), 4) AS mean_tail, round(max(tail_mass), 4) AS worst_tail,
                    rtrim(bar(max(tail_mass), 0, 1, 20)) AS worst, arg_max(token_text, tail_mass) AS worst_token
                FROM tokens WHERE split = {quoted(split.value)} GROUP BY ALL ORDER BY mean_tail DESC
                """
            ),
        ]
    )
    return


if __name__ == "__main__":
    app.run()
