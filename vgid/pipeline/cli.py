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
import warnings
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Any

import typer

from vgid import __version__
from vgid.errors import ConfigError, VgidError
from vgid.pipeline.console import human_bytes, say, table

app = typer.Typer(
    name="vgid",
    help="Remove knowledge from a multimodal LLM: cache a frozen teacher, then distil a student on the cache.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"auto_envvar_prefix": "VGID", "help_option_names": ["-h", "--help"]},
)
teacher_app = typer.Typer(
    help="Stage one: the frozen base under intervention writes targets into a cache.", no_args_is_help=True
)
data_app = typer.Typer(
    help="Check a data set; make fictitious ones and the tiny models that know them.", no_args_is_help=True
)
cache_app = typer.Typer(help="Look after a cache of targets.", no_args_is_help=True)
app.add_typer(teacher_app, name="teacher")
app.add_typer(cache_app, name="cache")
app.add_typer(data_app, name="data")

RecipeArg = Annotated[
    str, typer.Argument(help="A recipe: path of a YAML file, or the name of a shipped one.", metavar="RECIPE")
]
SetOption = Annotated[list[str] | None, typer.Option("--set", help="Override one setting, e.g. --set distill.alpha=2.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout.")]
CacheArg = Annotated[str, typer.Argument(help="Path or URL of a cache.", metavar="CACHE")]
EngineOption = Annotated[str, typer.Option("--engine", help="vllm, or transformers (slow, the reference).")]


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


@teacher_app.command("generate")
def teacher_generate(
    recipe: RecipeArg,
    out: Annotated[
        str, typer.Option("--out", help="Directory or URL of the cache; a rerun adds only what is missing.")
    ],
    engine: EngineOption = "vllm",
    shard: Annotated[str, typer.Option("--shard", help="i/n: this worker's part of the plan.")] = "0/1",
    limit: Annotated[
        int | None, typer.Option("--limit", min=1, help="Pilot of N rows over all kinds of rows; predicts the whole.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print rows, tokens and bytes; generate nothing.")] = False,
    rows_per_part: Annotated[int, typer.Option(min=1, help="Most rows computed between two commits, per split.")] = 256,
    profile: Annotated[
        str, typer.Option("--profile", help="Encoding of the parts: default, or compat for DuckDB 1.4 and 1.5.")
    ] = "default",
    expire_after: Annotated[
        str | None, typer.Option("--expire-after", help="90d, 12w: when the cache should be erased; `status` warns.")
    ] = None,
    overrides: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write the teacher's top-k distributions for a recipe's plan into a cache.

    Example: vgid teacher generate fictitious --out runs/cache --dry-run
    """
    from vgid.pipeline import stages
    from vgid.pipeline.recipe import load_examples, load_recipe

    index, count = _parse_shard(shard)
    expires = _parse_expiry(expire_after)
    loaded, folder = load_recipe(recipe, overrides=overrides or [])
    job = stages.prepare_teacher(loaded, load_examples(loaded.data, folder=folder), engine=_engine(engine))
    if dry_run:
        rows = stages.dry_run(job)
        _print(rows, as_json=as_json, columns=list(rows[0]))
        return
    result = stages.run_teacher(
        job,
        out,
        shard=(index, count),
        limit=limit,
        rows_per_part=rows_per_part,
        profile=_profile(profile),
        expires=expires,
    )
    record = stages.as_record(result) | {"cache": out, "engine": engine}
    if limit is not None and result.generated:
        record["prediction"] = stages.predict_whole(job, result, out)
    _print_record(record, as_json=as_json)


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
    overrides: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Distil the student on cached targets and save it with processor and model card.

    Example: vgid distill fictitious --cache runs/cache --out runs/student
    """
    from vgid.pipeline import stages
    from vgid.pipeline.recipe import load_examples, load_recipe

    loaded, folder = load_recipe(recipe, overrides=overrides or [])
    examples = load_examples(loaded.data, folder=folder)
    result = stages.run_distill(loaded, examples, cache, out, allow_partial=allow_partial, scratch=scratch)
    _print_record(stages.as_record(result), as_json=as_json)


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
    from vgid.pipeline import stages
    from vgid.pipeline.report import summary_table

    asked = stages.evaluation_data(data, overrides=overrides or [], per_cell=per_cell, dtype=dtype)
    models = [stages.NamedModel(name="base", model=compare)] if compare else []
    models.append(stages.NamedModel(name="student" if compare else "model", model=model))
    models += [stages.NamedModel(name="retrained", model=retrained)] if retrained else []
    results = stages.run_evaluate(models, asked, out=out, engine=_engine(engine))
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


@cache_app.command("status")
def cache_status(cache: CacheArg, as_json: JsonOption = False) -> None:
    """Say what a cache holds and how far it has come; opens no part, so it answers at once.

    Example: vgid cache status runs/cache
    """
    from vgid.pipeline import cache_commands

    found = cache_commands.status(cache)
    print(json.dumps(asdict(found)) if as_json else cache_commands.status_text(found))


@cache_app.command("verify")
def cache_verify(cache: CacheArg, as_json: JsonOption = False) -> None:
    """Check every file, hash and row of a cache; exit code 1 if anything is wrong.

    Example: vgid cache verify runs/cache
    """
    from vgid.pipeline import cache_commands

    report = cache_commands.verify(cache)
    print(json.dumps(asdict(report)) if as_json else cache_commands.report_text(report))
    if report.num_errors:
        raise typer.Exit(1)


@cache_app.command("erase")
def cache_erase(
    cache: CacheArg,
    subject: Annotated[
        list[str] | None, typer.Option("--subject", help="Erase all rows of this subject_id; repeatable.")
    ] = None,
    example: Annotated[
        list[str] | None, typer.Option("--example", help="Erase all rows of this example_id; repeatable.")
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="Erase every row; the cache can take none again.")] = False,
    allow_absent: Annotated[
        bool, typer.Option("--allow-absent", help="Also for names without rows, to keep later ones out.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be erased; erase nothing.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Erase subjects, examples or everything from a cache and every copy of it that vgid made, for good.

    Writers that run again leave them out; a keyed log in the cache says when it was done, but not who. What cannot be
    reached (backups, students, other people's copies) is listed. Run it again when writers that ran meanwhile are done.

    Example: vgid cache erase runs/cache --subject forget-3 --dry-run
    """
    from vgid.pipeline import cache_commands

    selection = cache_commands.select(subject or [], example or [], everything=everything)
    found = cache_commands.find_rows(cache, selection, allow_absent=allow_absent)
    if dry_run:
        print(json.dumps({"cache": cache, **asdict(found)}) if as_json else cache_commands.found_text(found))
        return
    if not cache_commands.confirm_erasure(cache, found, yes=yes):
        raise typer.Exit(1)
    done = cache_commands.run_erase(cache, selection)
    print(json.dumps(asdict(done)) if as_json else cache_commands.erasure_text(done))


@data_app.command("check")
def data_check(
    recipe: RecipeArg,
    as_json: JsonOption = False,
) -> None:
    """Read a recipe's whole data set, say what it holds and list everything that is wrong with it.

    Example: vgid data check fictitious
    """
    from vgid.pipeline.data_commands import check_recipe_data

    report = check_recipe_data(recipe)
    print(json.dumps(report.to_dict()) if as_json else report.to_text())
    if not report.ok:
        raise typer.Exit(65)


@data_app.command("fictitious")
def data_fictitious(
    out: Annotated[Path, typer.Option("--out", help="Directory of the new world; must not exist.")],
    seed: Annotated[int, typer.Option("--seed", help="The world is a function of the seed and the numbers below.")],
    forget: Annotated[int | None, typer.Option(min=1, help="People to forget.")] = None,
    retain: Annotated[int | None, typer.Option(min=1, help="People to keep.")] = None,
    outsiders: Annotated[int | None, typer.Option(min=1, help="People known to the base, in neither set.")] = None,
    instruct: Annotated[int | None, typer.Option(min=1, help="People who teach what an instruction means.")] = None,
    strangers: Annotated[int | None, typer.Option(min=1, help="People whom no model is taught.")] = None,
) -> None:
    """Make a world of fictitious people in MLLMU-Bench's columns.

    Example: vgid data fictitious --seed 7 --out runs/world7
    """
    from vgid.pipeline.data_commands import make_world

    asked = {
        "forget": forget,
        "retain": retain,
        "outsiders": outsiders,
        "instruct": instruct,
        "strangers": strangers,
    }
    make_world(out, seed=seed, people={name: count for name, count in asked.items() if count is not None})
    print(out)


@data_app.command("train-base")
def data_train_base(
    world: Annotated[Path, typer.Argument(help="Folder of a fictitious world.")],
    out: Annotated[Path, typer.Option("--out", help="Directory of the new model; must not exist.")],
    seed: Annotated[int, typer.Option("--seed", help="Seed of initialisation and order.")] = 0,
    without: Annotated[
        str | None, typer.Option("--without", help="Leave a split out: forget gives the retrained model.")
    ] = None,
) -> None:
    """Train the tiny Qwen2-VL that knows a world (minutes on a CPU).

    Example: vgid data train-base runs/world7 --out runs/base7 --seed 7
    """
    from vgid.pipeline.data_commands import train_world_base

    train_world_base(world, out, seed=seed, exclude=(without,) if without else ())
    print(out)


@app.command("demo")
def demo(
    out: Annotated[Path, typer.Option("--out", help="Run directory.")] = Path("runs/demo"),
    seed: Annotated[int, typer.Option("--seed", help="Seed of world, base and training with --from-scratch.")] = 0,
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
    # Deprecations inside the libraries underneath are nothing a user can act on.
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    os.environ.setdefault("TQDM_DISABLE", "1")  # of the libraries underneath; vgid draws its own progress
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
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


def _engine(name: str) -> Any:
    if name not in ("vllm", "transformers"):
        raise ConfigError(f"--engine {name!r} is unknown; choose vllm or transformers")
    return name


def _profile(name: str) -> Any:
    if name not in ("default", "compat"):
        raise ConfigError(f"--profile {name!r} is unknown; choose default or compat")
    return name


def _parse_expiry(text: str | None) -> str | None:
    if text is None:
        return None
    days = {"d": 1, "w": 7}.get(text[-1:], 0)
    if not (text[:-1].isdecimal() and days and int(text[:-1])):
        raise ConfigError(f"--expire-after {text!r}: expected a number of days or weeks, for example 90d or 12w")
    expires = datetime.now(UTC) + timedelta(days=int(text[:-1]) * days)
    return expires.isoformat(timespec="seconds")


def _parse_shard(text: str) -> tuple[int, int]:
    index, _, count = text.partition("/")
    if not (index.isdecimal() and count.isdecimal() and int(index) < int(count)):
        raise ConfigError(f"--shard {text!r}: expected i/n with 0 <= i < n, for example 3/32")
    return int(index), int(count)


def _print(rows: list[dict[str, Any]], *, as_json: bool, columns: list[str]) -> None:
    if as_json:
        print(json.dumps(rows))
        return
    shown = [[human_bytes(row[name]) if name.endswith("_bytes") else row[name] for name in columns] for row in rows]
    print(table(columns, shown))


def _print_record(record: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        print(json.dumps(record, default=str))
        return
    flat = [(key, value) for key, value in record.items() if not isinstance(value, dict)]
    flat += [
        (f"{key}.{name}", value)
        for key, group in record.items()
        if isinstance(group, dict)
        for name, value in group.items()
    ]
    print(
        "\n".join(f"{key}: {value}" for key, value in flat if value is not None and not isinstance(value, list | tuple))
    )
