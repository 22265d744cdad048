"""What `vgid data …` does, between the command line and `vgid.data`."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from vgid.data.fictitious.bars import JUDGED_SPLITS
from vgid.errors import ConfigError
from vgid.pipeline.console import progress, say
from vgid.pipeline.recipe import load_recipe, sources_of
from vgid.stage1_teacher.icu import TEMPLATES

MEASURED_PEOPLE = 8
"""People asked about per split after training; enough to see a missing skill, quick enough not to matter."""


def check_recipe_data(name: str) -> Any:
    """Check all sources of a recipe; see `vgid.data.readers.check_sources`."""
    from vgid.data.readers import check_sources

    recipe, folder = load_recipe(name)
    sources, root = sources_of(recipe.data, folder=folder)
    return check_sources(sources, root=root)


def make_world(out: Path, *, seed: int, people: Mapping[str, int]) -> None:
    """Write a fictitious world; counts not given are those of the default world."""
    from vgid.data.fictitious.world import DEFAULT_PEOPLE, generate_world, write_world

    _refuse_existing(out)
    write_world(generate_world(seed=seed, people={**DEFAULT_PEOPLE, **people}), out)


def train_world_base(world: Path, out: Path, *, seed: int, exclude: tuple[str, ...]) -> None:
    """Train a base (or, with forget excluded, the retrained model) of a world, with a progress display."""
    from vgid.data.fictitious.train import train_base

    _refuse_existing(out)
    with progress(f"train {out.name}") as report:
        train_base(
            world,
            out,
            seed=seed,
            exclude=exclude,
            progress=lambda step, steps, loss: report(step, steps, f"steps, loss {loss:.3f}"),
        )
    _measure(out, world, known=tuple(split for split in JUDGED_SPLITS if split not in exclude))


def _measure(model: Path, world: Path, *, known: tuple[str, ...]) -> None:
    """Hold a new model against the bars and write what was found into its `vgid_base.json`.

    The instructions are stage one's templates, none of which is among those that the model was taught with.
    """
    from vgid.data.fictitious.bars import judge_skills, record_skills
    from vgid.data.fictitious.skills import greedy_answers, measure_skills
    from vgid.data.fictitious.world import load_world

    rows = measure_skills(greedy_answers(model), load_world(world), instructions=TEMPLATES, per_split=MEASURED_PEOPLE)
    verdicts = judge_skills(rows, splits=known)
    record_skills(model, verdicts)
    for verdict in verdicts:
        met = "meets" if verdict.met else "MISSES"
        say(f"  {verdict.bar.name}: {verdict.value:.3f} in {verdict.split}, {met} the bar of {verdict.bar.least:.2f}")


def train_base_and_retrained(world: Path, *, base: Path, retrained: Path, seed: int) -> None:
    """Train both models of a world side by side, one core each (a second thread would not make one faster)."""
    missing = [(out, exclude) for out, exclude in ((base, ()), (retrained, ("forget",))) if not out.exists()]
    with ProcessPoolExecutor(max_workers=2, mp_context=get_context("spawn")) as pool:
        for job in [pool.submit(train_world_base, world, out, seed=seed, exclude=exclude) for out, exclude in missing]:
            job.result()


def _refuse_existing(out: Path) -> None:
    if out.exists():
        raise ConfigError(f"--out {out} exists; choose a new directory or remove it first")


def copy_shipped(run: Path) -> None:
    """Put copies of the shipped world and models into a run directory, so that it stands alone."""
    import shutil

    from vgid.data.fictitious import shipped_base, shipped_retrained, shipped_world

    for name, source in (("world", shipped_world()), ("base", shipped_base()), ("retrained", shipped_retrained())):
        if not (run / name).exists():
            shutil.copytree(source, run / name)
            say(f"copied the shipped {name} to {run / name}")
