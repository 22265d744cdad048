"""`vgid data …`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from vgid.pipeline.cli_options import MAX_SEED, EngineOption, JsonOption, RecipeArg, parse_engine

app = typer.Typer(
    help="Check a data set, draft one from photos and a name; make fictitious ones and the tiny models that know them.",
    no_args_is_help=True,
)


@app.command("check")
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


@app.command("questions")
def data_questions(
    photos: Annotated[list[Path], typer.Argument(help="Photos of the person: image files.", metavar="PHOTO...")],
    name: Annotated[str, typer.Option("--name", help="What people call the person.")],
    model: Annotated[str, typer.Option("--model", help="The base: a directory or a Hugging Face id.")],
    out: Annotated[Path, typer.Option("--out", help="Folder to be made, for its owner's eyes only.")],
    subject: Annotated[
        str | None, typer.Option("--subject", help="Id of the person; made of the name if not given.")
    ] = None,
    engine: EngineOption = "vllm",
    limit: Annotated[int | None, typer.Option("--limit", min=1, help="Most questions asked.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Ask a model what it says about a person, and draft the forget set, a recipe, and what data to bring beside it.

    Example: vgid data questions mara-1.jpg mara-2.jpg --name "Mara Quill" --model ./my-model --out request
    """
    from vgid.pipeline.questions import propose_questions

    proposal = propose_questions(
        photos,
        name=name,
        model=model,
        out=out,
        subject=subject,
        engine=parse_engine(engine),
        limit=limit,
    )
    if as_json:
        print(json.dumps({"folder": str(out), "rows": proposal.rows, "attributes": proposal.attributes}))
    else:
        print((out / "README.md").read_text(encoding="utf-8"))


@app.command("fictitious")
def data_fictitious(
    out: Annotated[Path, typer.Option("--out", help="Directory of the new world; must not exist.")],
    seed: Annotated[
        int,
        typer.Option("--seed", min=0, max=MAX_SEED, help="The world is a function of the seed and the numbers below."),
    ],
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


@app.command("train-base")
def data_train_base(
    world: Annotated[Path, typer.Argument(help="Folder of a fictitious world.")],
    out: Annotated[Path, typer.Option("--out", help="Directory of the new model; must not exist.")],
    seed: Annotated[int, typer.Option("--seed", min=0, max=MAX_SEED, help="Seed of initialisation and order.")] = 0,
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
