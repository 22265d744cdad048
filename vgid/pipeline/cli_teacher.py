"""`vgid teacher …`."""

from __future__ import annotations

import json
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from vgid.pipeline.cli_options import (
    CacheArg,
    EngineOption,
    JsonOption,
    RecipeArg,
    SetOption,
    parse_engine,
    parse_expiry,
    parse_names,
    parse_numbers,
    parse_profile,
    parse_shard,
    print_record,
    print_rows,
)
from vgid.pipeline.console import say
from vgid.pipeline.launch import check_launcher
from vgid.stage1_teacher.options import DEFAULT_OPTIONS, EngineOptions

app = typer.Typer(
    help="Stage one: the frozen base under intervention writes targets into a cache.", no_args_is_help=True
)


@app.command("generate")
def teacher_generate(
    context: typer.Context,
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
    tensor_parallel: Annotated[
        int, typer.Option("--tensor-parallel", min=1, help="GPUs that share one copy of the model.")
    ] = DEFAULT_OPTIONS.tensor_parallel,
    gpu_memory: Annotated[
        float, typer.Option("--gpu-memory", min=0.05, max=1, help="Share of a GPU's memory that the engine may take.")
    ] = DEFAULT_OPTIONS.gpu_memory,
    max_model_len: Annotated[
        int | None,
        typer.Option("--max-model-len", min=1, help="Longest prompt plus response; default: the model's, or 4096."),
    ] = None,
    window: Annotated[
        int, typer.Option("--window", min=1, help="Most requests in the engine at one time.")
    ] = DEFAULT_OPTIONS.window,
    trace_replay: Annotated[
        bool, typer.Option("--trace-replay", help="Decode along reference answers (vLLM 0.29 or later on a GPU).")
    ] = False,
    overrides: SetOption = None,
    launcher: Annotated[
        str, typer.Option("--launcher", help="here: in this process; slurm: as an array job; ray: in a pool of actors.")
    ] = "here",
    shards: Annotated[int | None, typer.Option("--shards", min=1, help="Slurm: tasks of the array job.")] = None,
    slurm: Annotated[
        list[str] | None, typer.Option("--slurm", help="Slurm: an option of sbatch, e.g. --slurm partition=gpu.")
    ] = None,
    script: Annotated[
        Path | None, typer.Option("--script", help="Slurm: write the job script to a new file; default: stdout.")
    ] = None,
    submit: Annotated[bool, typer.Option("--submit", help="Slurm: give the job script to sbatch.")] = False,
    workers: Annotated[
        int | None, typer.Option("--workers", min=1, help="Ray: actors; default: as many as there are GPUs for, or 1.")
    ] = None,
    ray_address: Annotated[
        str | None, typer.Option("--ray-address", help="Ray: a running cluster; default: one on this machine.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Write the teacher's top-k distributions for a recipe's plan into a cache.

    Example: vgid teacher generate fictitious --out runs/cache --dry-run
    """
    from vgid.pipeline import teacher

    index, count = parse_shard(shard)
    check_launcher(context.params)
    options = EngineOptions(
        tensor_parallel=tensor_parallel,
        gpu_memory=gpu_memory,
        max_model_len=max_model_len,
        window=window,
        trace_replay=trace_replay,
    )
    prepare = partial(teacher.prepare, recipe, overrides=overrides or [], engine=parse_engine(engine), options=options)
    writing: dict[str, Any] = {
        "rows_per_part": rows_per_part,
        "profile": parse_profile(profile),
        "expires": parse_expiry(expire_after),
    }
    if dry_run:
        rows = teacher.dry_run(prepare(), options=options)
        print_rows(rows, as_json=as_json, columns=list(rows[0]))
        return
    if launcher == "slurm":
        from vgid.pipeline import launch_slurm

        print(launch_slurm.launch(context.command.params, context.params))
        return
    job = prepare()
    if launcher == "ray":
        from vgid.pipeline.launch_ray import Order, run_ray

        order = Order(prepare=prepare, options=options, out=out, writing=writing, folder=Path.cwd())
        result = run_ray(job, order, workers=workers, address=ray_address)
    else:
        result = teacher.run_teacher(job, out, shard=(index, count), limit=limit, options=options, **writing)
    record = asdict(result) | {"quarantined": len(job.recipe.teacher.quarantine), "cache": out, "engine": engine}
    if limit is not None and result.generated:
        record["prediction"] = teacher.predict_whole(job, result, out)
    print_record(record, as_json=as_json)


@app.command("presets")
def teacher_presets(as_json: JsonOption = False) -> None:
    """List the shipped presets: where their settings come from, and what the source leaves open.

    A recipe takes one with `preset: NAME` and says only what is its own: model, data, dtype, num_topk.

    Example: vgid teacher presets
    """
    from vgid.pipeline.recipe import load_preset, shipped_presets

    presets = [load_preset(name) for name in shipped_presets()]
    if as_json:
        print(json.dumps([asdict(preset) for preset in presets]))
        return
    for preset in presets:
        print(f"{preset.name}\n  source: {preset.source}\n  unknown: {preset.unknown}\n")


@app.command("preview")
def teacher_preview(
    recipe: RecipeArg,
    out: Annotated[Path, typer.Option("--out", help="The contact sheet, a PNG file for its owner's eyes only.")],
    examples: Annotated[int, typer.Option("--examples", min=1, max=100, help="Rows of the sheet.")] = 8,
    split: Annotated[str, typer.Option("--split", help="Which rows of the plan.")] = "forget",
    perturbation: Annotated[
        str | None, typer.Option("--perturbation", help="Another perturbation than the recipe's.")
    ] = None,
    strengths: Annotated[
        str | None, typer.Option("--strengths", help="0,0.5,1: which to show; five steps up to the highest otherwise.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the file.")] = False,
    overrides: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Draw real rows as the teacher will see them, under a range of strengths, and print the exact prompts.

    Example: vgid teacher preview fictitious --out sheet.png --strengths 0.25,0.5,1
    """
    from vgid.pipeline.console import spelt_out
    from vgid.pipeline.preview import preview
    from vgid.pipeline.recipe import load_examples, load_recipe

    loaded, folder = load_recipe(recipe, overrides=overrides or [])
    rows = preview(
        loaded,
        load_examples(loaded.data, folder=folder),
        out=out,
        count=examples,
        split=split,
        perturbation=perturbation,
        strengths=() if strengths is None else tuple(parse_numbers(strengths, option="--strengths")),
        overwrite=overwrite,
    )
    if as_json:
        print(json.dumps([row.to_dict() for row in rows]))
        return
    for row in rows:
        print(f"--- {row.example_id} · {row.view}", *map(spelt_out, row.prompt.splitlines()), "", sep="\n")
    print(out)


@app.command("inspect")
def teacher_inspect(
    cache: CacheArg,
    recipe: Annotated[
        str | None,
        typer.Option("--recipe", help="Recipe whose data knows the facts, and whose distill.targets say what trains."),
    ] = None,
    perturbation: Annotated[
        str | None, typer.Option("--perturbation", help="Which variant, where the cache holds several.")
    ] = None,
    strength: Annotated[float | None, typer.Option("--strength", help="The same, by strength.")] = None,
    icu: Annotated[str | None, typer.Option("--icu", help="The same, by ICU template.")] = None,
    retain_only: Annotated[
        str | None, typer.Option("--retain-only", help="Cache of a model that never saw the forget set (D18).")
    ] = None,
    student: Annotated[str | None, typer.Option("--student", help="Cache of a student (D17).")] = None,
    strict: Annotated[
        bool,
        typer.Option("--strict", help="Exit with 1 if a gate fails, or one that the recipe requires is not passed."),
    ] = False,
    quarantine: Annotated[
        Path | None, typer.Option("--quarantine", help="Write the failing subjects to this file, as YAML for a recipe.")
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", help="Directory for results.json and samples.parquet.")] = None,
    overrides: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Judge cached targets before anybody trains on them: leak, refusal, entropy, stability, selectivity, with gates.

    Example: vgid teacher inspect runs/cache --recipe fictitious
    """
    from vgid.pipeline.inspect_command import quarantine_yaml, report_text, run_inspect, unmet_gates
    from vgid.pipeline.recipe import load_recipe

    report, results = run_inspect(
        cache,
        recipe=recipe,
        overrides=overrides or [],
        perturbation=perturbation,
        strength=strength,
        icu_id=icu,
        retain_only=retain_only,
        student=student,
        out=out,
    )
    print(json.dumps(results) if as_json else report_text(report))
    if quarantine is not None:
        quarantine.write_text(quarantine_yaml(report), encoding="utf-8")
    if strict:
        required = None if recipe is None else load_recipe(recipe, overrides=overrides or [])[0].gates.required
        if unmet := unmet_gates(results, required=required):
            say(f"error: gates: {'; '.join(gate.describe() for gate in unmet)}")
            raise typer.Exit(1)


@app.command("sweep")
def teacher_sweep(
    recipe: RecipeArg,
    out: Annotated[Path, typer.Option("--out", help="Directory for the cache, sweep.svg and results.json.")],
    strengths: Annotated[
        str, typer.Option("--strengths", help="Of every perturbation, with commas between them.")
    ] = "0.25,0.5,0.75,1",
    icu: Annotated[
        str | None, typer.Option("--icu", help="ICU templates, with commas between them; default: the recipe's.")
    ] = None,
    perturbations: Annotated[
        str | None, typer.Option("--perturbations", help="Perturbations, the same way; default: the recipe's.")
    ] = None,
    subjects: Annotated[
        int, typer.Option("--subjects", min=2, help="How many subjects of forget, and as many of retain.")
    ] = 4,
    engine: EngineOption = "vllm",
    overrides: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Try strengths and templates on a few subjects and draw leak, refusal, entropy and selectivity over the strength.

    Example: vgid teacher sweep fictitious --out runs/sweep --strengths 0.5,1 --subjects 2 --engine transformers
    """
    from vgid.pipeline.recipe import load_examples, load_recipe
    from vgid.pipeline.sweep import run_sweep, sweep_table

    loaded, folder = load_recipe(recipe, overrides=overrides or [])
    _, points, results = run_sweep(
        loaded,
        load_examples(loaded.data, folder=folder),
        out,
        strengths=parse_numbers(strengths, option="--strengths"),
        templates=parse_names(icu),
        perturbations=parse_names(perturbations),
        subjects=subjects,
        engine=parse_engine(engine),
    )
    print(json.dumps(results) if as_json else f"{sweep_table(points)}\n\ncurves: {out / 'sweep.svg'}")
