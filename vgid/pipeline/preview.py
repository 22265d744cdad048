"""Look at what the teacher will see: pictures of real rows under a range of strengths, with their exact prompts.

Pixels and prompts come from the functions that generate with; nothing is loaded but the model's processor.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from PIL import Image as PIL

from vgid.data.chat import chat_prompt, load_processor
from vgid.data.examples import Example
from vgid.data.images import open_image
from vgid.data.models import resolve_model
from vgid.errors import ConfigError
from vgid.pipeline.contact_sheet import SheetRow, draw_sheet, thumbnail
from vgid.pipeline.private_files import check_free, new_private_file
from vgid.pipeline.recipe import Recipe
from vgid.stage1_teacher.generate import picture_of, pilot_of_plan, prompt_text
from vgid.stage1_teacher.perturb import PERTURBATIONS, check_strength, full_strength
from vgid.stage1_teacher.plan import PlannedTarget, make_plan
from vgid.stage1_teacher.settings import PerturbationSettings, TeacherSettings

STEPS = (0.0, 0.25, 0.5, 0.75, 1.0)
"""Shares of the full strength that are shown if nothing else is asked for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Previewed:
    """One example as the teacher will be asked it."""

    example_id: str
    view: str
    text: str
    """The user's turn: instruction and question."""
    prompt: str
    """The same after the chat template: what the model reads, one placeholder for the picture."""
    pixel_sha256: dict[str, str]
    """Strength -> hash of the RGB bytes that the teacher gets; empty for text-only questions."""
    pictures: tuple[tuple[str, PIL.Image], ...]
    """Captions and thumbnails, the picture as it is first."""

    def to_dict(self) -> dict[str, Any]:
        """Everything but the pictures."""
        names = ("example_id", "view", "text", "prompt", "pixel_sha256")
        return {name: getattr(self, name) for name in names}


def preview(
    recipe: Recipe,
    examples: Sequence[Example],
    *,
    out: Path,
    count: int,
    split: str,
    perturbation: str | None = None,
    strengths: Sequence[float] = (),
    overwrite: bool = False,
) -> list[Previewed]:
    """Draw a contact sheet of a recipe's teacher pass.

    Args:
        recipe: Whose plan and settings are shown.
        examples: The recipe's data.
        out: The PNG file; readable by its owner only.
        count: Most examples, spread over the plan's kinds of rows.
        split: Which rows.
        perturbation: Another one than the recipe's.
        strengths: In the perturbation's unit; none: five steps up to the highest, and the recipe's own.
        overwrite: Whether `out` may exist.

    Raises:
        ConfigError: an option is wrong, or the plan has no row in `split`.
        DataError: a picture cannot be read.
    """
    check_free(out, option="--out", overwrite=overwrite)
    settings = _with_perturbation(recipe.teacher, perturbation)
    shown_strengths = _strengths(settings.perturbation, strengths)
    processor = load_processor(resolve_model(recipe.model, revision=recipe.revision))
    plan = make_plan(examples, settings=settings, teacher={}, engine_id="")
    rows = [
        _previewed(planned, settings, shown_strengths, processor) for planned in _sample(plan, split=split, count=count)
    ]
    sheet = draw_sheet(
        _title(settings, split),
        [SheetRow(heading=f"{row.example_id} · {row.view}", pictures=row.pictures, text=row.text) for row in rows],
    )
    with new_private_file(out, option="--out", overwrite=overwrite) as file:
        sheet.save(file, "PNG")
    return rows


def _with_perturbation(settings: TeacherSettings, name: str | None) -> TeacherSettings:
    noise = settings.perturbation
    if name is None or (noise is not None and name == noise.name):
        return settings
    if name not in PERTURBATIONS:
        check_strength(name, 0)  # says which there are
    space = "pixel" if noise is None else noise.space
    other = PerturbationSettings.model_validate({"name": name, "strength": full_strength(name), "space": space})
    return settings.model_copy(update={"perturbation": other})


def _strengths(noise: PerturbationSettings | None, asked: Sequence[float]) -> list[float]:
    if noise is None:
        if asked:
            raise ConfigError("--strengths: the recipe perturbs no pictures; name a perturbation with --perturbation")
        return []
    for strength in asked:
        check_strength(noise.name, strength)
    steps = asked or [float(round(step * full_strength(noise.name), 2)) for step in STEPS]
    return sorted({float(strength) for strength in steps} | (set() if asked else {float(noise.strength)}))


def _sample(plan: Sequence[PlannedTarget], *, split: str, count: int) -> list[PlannedTarget]:
    """One target per example, with as much intervention as the plan has for it."""
    best: dict[str, PlannedTarget] = {}
    for planned in plan:
        if planned.example.split == split and planned.draw == 0:
            known = best.get(planned.example.example_id)
            if known is None or (planned.is_noised, len(planned.view)) > (known.is_noised, len(known.view)):
                best[planned.example.example_id] = planned
    if not best:
        splits = sorted({planned.example.split for planned in plan})
        raise ConfigError(f"--split {split}: the recipe's plan has no such rows; it has {', '.join(splits)}")
    # The first question about every picture (or person) before the second about any: the plan has them side by side.
    asked: Counter[str] = Counter()
    turns: list[tuple[int, PlannedTarget]] = []
    for planned in best.values():
        about = planned.image_sha256 or planned.example.subject_id
        turns.append((asked[about], planned))
        asked[about] += 1
    return pilot_of_plan([planned for _, planned in sorted(turns, key=lambda turn: turn[0])], size=count)


def _previewed(
    planned: PlannedTarget, settings: TeacherSettings, strengths: Sequence[float], processor: Any
) -> Previewed:
    example, text = planned.example, prompt_text(planned)
    pictures: list[tuple[str, PIL.Image]] = []
    hashes: dict[str, str] = {}
    if example.image is not None:
        original = open_image(example.image, where=f"example {example.example_id}")
        pictures.append((f"original, {original.width}x{original.height}", thumbnail(original)))
        for strength in strengths if planned.is_noised else ():
            picture = picture_of(planned, _at(settings, strength=strength), image_processor=processor.image_processor)
            hashes[f"{strength:g}"] = sha256(picture.tobytes()).hexdigest()
            pictures.append((f"strength {strength:g}", thumbnail(picture)))
    return Previewed(
        example_id=example.example_id,
        view=planned.view,
        text=text,
        prompt=chat_prompt(processor, text, image=example.image is not None),
        pixel_sha256=hashes,
        pictures=tuple(pictures),
    )


def _at(settings: TeacherSettings, *, strength: float) -> TeacherSettings:
    noise = settings.perturbation
    assert noise is not None  # a plan with noise has one
    return settings.model_copy(update={"perturbation": noise.model_copy(update={"strength": strength})})


def _title(settings: TeacherSettings, split: str) -> str:
    noise = settings.perturbation
    if noise is None:
        return f"{split}: pictures as they are"
    return f"{split}: {noise.name} in space {noise.space}, seed {settings.seed}, draw 0"
