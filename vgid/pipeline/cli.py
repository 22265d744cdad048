"""The command line: parse, call a stage, print. No logic.

Results go to stdout, progress to stderr. Heavy libraries are imported inside the commands that need them, so that
`--help`, `vgid sql` and `vgid cache` answer at once.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import traceback
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from vgid import __version__
from vgid.errors import VgidError
from vgid.pipeline import cli_cache, cli_data, cli_teacher
from vgid.pipeline.cli_options import (
    MAX_SEED,
    CacheArg,
    EngineOption,
    JsonOption,
    LoaderWorkersOption,
    RecipeArg,
    SetOption,
    parse_dtype,
    parse_engine,
    print_record,
)
from vgid.pipeline.console import one_speaks, quieten_libraries, say

app = typer.Typer(
    name="vgid",
    help="Remove knowledge from a multimodal LLM: cache a frozen teacher, then distil a student on the cache.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"auto_envvar_prefix": "VGID", "help_option_names": ["-h", "--help"]},
)
app.add_typer(cli_teacher.app, name="teacher")
app.add_typer(cli_cache.app, name="cache")
app.add_typer(cli_data.app, name="data")

_INTERRUPTED = 130


def _version(value: bool) -> None:
    if value:
        print(__version__)
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    pass


@app.command("run")
def run(
    recipe: RecipeArg,
    out: Annotated[Path, typer.Option("--out", help="Run directory; a rerun continues, or does nothing.")],
    engine: EngineOption = "vllm",
    retrained: Annotated[str | None, typer.Option("--retrained", help="A model that never saw the forget set.")] = None,
    train_anyway: Annotated[
        bool, typer.Option("--train-anyway", help="Train although gates are not met; student and results name them.")
    ] = False,
    until: Annotated[
        str, typer.Option("--until", help="Last step: data, teacher, gates, distill or evaluate.")
    ] = "evaluate",
    loader_workers: LoaderWorkersOption = 0,
    overrides: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Take a recipe from data to results: teacher, gates, student, evaluation; what is done already is not done again.

    Example: vgid run fictitious --out runs/fictitious
    """
    from vgid.pipeline.report import summary_table
    from vgid.pipeline.run import run_recipe

    steps, results = run_recipe(
        recipe,
        out,
        overrides=overrides or [],
        engine=parse_engine(engine),
        retrained=retrained,
        train_anyway=train_anyway,
        until=until,
        loader_workers=loader_workers,
    )
    if as_json:
        print(json.dumps({"out": str(out), "steps": [asdict(step) for step in steps], "results": results}))
    elif results is not None:
        print(summary_table(results["metrics"]))


@app.command("distill")
def distill(
    recipe: RecipeArg,
    cache: Annotated[str, typer.Option("--cache", help="Cache that `vgid teacher generate` wrote: path or URL.")],
    out: Annotated[Path, typer.Option("--out", help="Directory of the student.")],
    allow_partial: Annotated[
        bool, typer.Option("--allow-partial", help="Train although the cache lacks rows of the recipe's plan.")
    ] = False,
    scratch: Annotated[
        Path | None, typer.Option("--scratch", help="Where the cache's decoded copy goes; default: into the cache.")
    ] = None,
    trackers: Annotated[
        list[str] | None,
        typer.Option("--report-to", help="Tell a tracker of every step: tensorboard, wandb, trackio, mlflow, …"),
    ] = None,
    loader_workers: LoaderWorkersOption = 0,
    overrides: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Distil the student on cached targets and save it with processor and model card.

    Example: vgid distill fictitious --cache runs/cache --out runs/student
    """
    from vgid.pipeline.distill import advice_on_waiting, run_distill
    from vgid.pipeline.recipe import load_examples, load_recipe

    with one_speaks():
        loaded, folder = load_recipe(recipe, overrides=overrides or [])
        examples = load_examples(loaded.data, folder=folder)
        result = run_distill(
            loaded,
            examples,
            cache,
            out,
            allow_partial=allow_partial,
            scratch=scratch,
            trackers=trackers or (),
            loader_workers=loader_workers,
        )
        if advice := advice_on_waiting(result, loader_workers=loader_workers):
            say(advice)
        print_record(asdict(result), as_json=as_json)


@app.command("merge")
def merge(
    adapter: Annotated[Path, typer.Argument(help="A student saved with distill.export=adapter.")],
    out: Annotated[Path, typer.Option("--out", help="Directory of the whole model.")],
    base: Annotated[
        str | None, typer.Option("--base", help="Its base, if that lies elsewhere now: directory or Hugging Face id.")
    ] = None,
) -> None:
    """Add a student's adapter into its base's weights, for `vgid evaluate` and whatever serves whole models.

    Example: vgid merge runs/adapter --out runs/student
    """
    from vgid.pipeline.distill import student_directory
    from vgid.stage2_distill.export import merge_adapter

    merge_adapter(adapter, out=student_directory(out), base=base)
    print(f"merged: {out}")


@app.command("evaluate")
def evaluate(
    model: Annotated[str, typer.Argument(help="Model directory or Hugging Face id.")],
    data: Annotated[str, typer.Option("--data", help="A recipe, the folder of a fictitious world, or `shipped`.")],
    compare: Annotated[str | None, typer.Option("--compare", help="The base, asked the same questions.")] = None,
    retrained: Annotated[str | None, typer.Option("--retrained", help="A model that never saw the forget set.")] = None,
    out: Annotated[Path | None, typer.Option("--out", help="Directory for results.json and samples.parquet.")] = None,
    engine: EngineOption = "vllm",
    dtype: Annotated[
        str | None, typer.Option("--dtype", help="float32, bfloat16 or float16; default: the recipe's, or float32.")
    ] = None,
    per_cell: Annotated[
        int | None, typer.Option(min=1, help="Most questions per subject, task, modality, photo and phrasing.")
    ] = None,
    overrides: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Ask a model the data's questions and score the answers: ROUGE-L, leak, refusal, accuracy, prefill.

    Example: vgid evaluate fictitious:base --data shipped --retrained fictitious:retrained --per-cell 1
    """
    from vgid.pipeline import evaluation
    from vgid.pipeline.report import summary_table

    asked = evaluation.evaluation_data(data, overrides=overrides or [], per_cell=per_cell, dtype=parse_dtype(dtype))
    models = [evaluation.NamedModel(name="base", model=compare)] if compare else []
    models.append(evaluation.NamedModel(name="student" if compare else "model", model=model))
    models += [evaluation.NamedModel(name="retrained", model=retrained)] if retrained else []
    results = evaluation.run_evaluate(models, asked, out=out, engine=parse_engine(engine))
    if as_json:
        print(json.dumps({key: value for key, value in results.items() if key != "samples"}))
    else:
        print(summary_table(results["metrics"]))


@app.command("sql")
def sql(
    cache: CacheArg,
    query: Annotated[
        str | None, typer.Argument(help="SQL over the views; without it, they and their columns are listed.")
    ] = None,
    file: Annotated[str | None, typer.Option("--file", help="Read the query from a file; - is stdin.")] = None,
    output_format: Annotated[
        str | None,
        typer.Option("--format", help="table, csv, json or parquet; default: as --output is named, or table."),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", help="Write to a new file, readable by its owner only.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace --output if it exists.")] = False,
    timeout_s: Annotated[float, typer.Option("--timeout", min=0, help="Most seconds; 0 for no limit.")] = 300,
    memory: Annotated[
        str, typer.Option("--memory", help="Most memory of the query: 4GB, or a share of the machine's.")
    ] = "50%",
) -> None:
    """Query the cached targets with DuckDB; nothing outside the cache can be read and nothing can be written.

    Example: vgid sql runs/cache "SELECT split, view, count(*) AS n FROM targets GROUP BY ALL"
    """
    from vgid.pipeline.sql_command import describe_views, print_query, read_query

    asked = read_query(query, file=file)
    if asked is None:
        print(describe_views(cache))
        return
    print_query(
        cache,
        asked,
        output_format=output_format,
        output=output,
        overwrite=overwrite,
        timeout_s=timeout_s,
        memory=memory,
    )


@app.command("demo")
def demo(
    out: Annotated[Path, typer.Option("--out", help="Run directory.")] = Path("runs/demo"),
    seed: Annotated[
        int, typer.Option("--seed", min=0, max=MAX_SEED, help="Seed of world, base and training with --from-scratch.")
    ] = 0,
    from_scratch: Annotated[
        bool, typer.Option("--from-scratch", help="Make a new world and base first (minutes).")
    ] = False,
    overrides: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Tell the whole story on the fictitious benchmark: teacher, cache, SQL, student, before and after.

    Example: vgid demo --out runs/demo
    """
    from vgid.pipeline.demo import run_demo

    with contextlib.redirect_stdout(sys.stderr) if as_json else contextlib.nullcontext():
        results = run_demo(out, seed=seed, from_scratch=from_scratch, overrides=overrides or [])
    if as_json:
        print(json.dumps(results))


def main() -> None:
    """Run the command line; every error of ours is one line and an exit code."""
    quieten_libraries()
    try:
        app()
    except SystemExit as done:
        if done.code == _INTERRUPTED:  # Typer ends a KeyboardInterrupt with this code and no word
            say("error: interrupted; what this step had not finished is gone, what was committed stays")
        raise
    except VgidError as error:
        _show(error)
        sys.exit(error.exit_code)
    except OSError as error:
        _show(error)
        sys.exit(1)


def _show(error: Exception) -> None:
    if os.environ.get("VGID_DEBUG"):
        traceback.print_exception(error)
    say(f"error: {' '.join(str(error).split())}")
