"""A recipe: one YAML file with everything that changes results. Unknown keys are errors; `--set a.b=c` overrides.

Paths in `data` are relative to the recipe's own folder, so a recipe can be moved together with its data.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import yaml
from pydantic import Field, TypeAdapter, ValidationError, model_validator

from vgid.data.examples import Example
from vgid.data.strict import Strict
from vgid.errors import ConfigError
from vgid.pipeline.evaluate import EvaluateSettings
from vgid.pipeline.problems import first_problems
from vgid.pipeline.strict_yaml import read_yaml
from vgid.stage1_teacher.diagnose.gates import chosen_gates
from vgid.stage1_teacher.settings import TeacherSettings
from vgid.stage2_distill.settings import DistillSettings

if TYPE_CHECKING:
    from vgid.data.readers import Source


class SourceSettings(Strict):
    """One file or folder of examples."""

    path: str
    """Relative to `root`; a file, or a folder with train-*.parquet or test-*.parquet."""
    split: str | None = None
    """`forget`, `retain`, …; None where every row names its own."""
    photo: Literal["trained", "heldout"] | None = None
    """Were these pictures in the base's training?"""


class DataSettings(Strict):
    """Either a fictitious world, or a list of sources."""

    world: str | None = None
    """`shipped`, or the folder of a fictitious world."""
    root: str = "."
    """Folder that no image path may leave; relative to the recipe."""
    sources: tuple[SourceSettings, ...] = ()
    names: dict[str, str] = Field(default_factory=dict)
    """What people call a subject, by `subject_id`, for instructions that name it; before what the data says."""

    @model_validator(mode="after")
    def _check(self) -> DataSettings:
        if (self.world is None) == (not self.sources):
            raise ValueError("data needs either `world` or `sources`, and not both")
        return self


class GateSettings(Strict):
    """What a teacher must keep before `vgid run` trains on it; see `vgid.stage1_teacher.diagnose.gates`."""

    thresholds: dict[str, float | None] = Field(default_factory=dict)
    """Other thresholds by gate; None takes a gate away."""
    required: tuple[str, ...] | None = None
    """Gates that must be passed, where unknown is not passed; the others are then only told. None: no gate may fail."""

    @model_validator(mode="after")
    def _check(self) -> GateSettings:
        gates = chosen_gates(self.thresholds)
        for name in self.required or ():
            if name not in gates:
                raise ValueError(f"required: gate {name!r} is unknown or taken away; choose of {', '.join(gates)}")
        return self


class Recipe(Strict):
    """What `vgid run` reads, and each command its part of it."""

    preset: str | None = None
    """A shipped preset: what it says of teacher and training holds where the recipe is silent."""
    departures: tuple[str, ...] = ()
    """Settings in which the recipe differs from its preset; filled in when it is read."""
    model: str
    """The base: a directory, a Hugging Face id, or `fictitious:base`."""
    revision: str | None = None
    """Commit of a Hugging Face id; pin it."""
    data: DataSettings
    teacher: TeacherSettings
    gates: GateSettings = GateSettings()
    distill: DistillSettings
    evaluate: EvaluateSettings = EvaluateSettings()


def load_recipe(name: str, *, overrides: Sequence[str] = ()) -> tuple[Recipe, Path]:
    """Read a recipe.

    Args:
        name: Path of a YAML file, or the name of a shipped recipe.
        overrides: `a.b=c` settings, values in YAML.

    Returns:
        The recipe, and the folder its relative paths start from.

    Raises:
        ConfigError: not found, not YAML, an unknown key or a bad value (each is named).
    """
    text, folder = _read(name)
    try:
        values = read_yaml(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"recipe {name}: not valid YAML ({' '.join(str(error).split())})") from error
    if not isinstance(values, dict):
        raise ConfigError(f"recipe {name}: expected a mapping of settings, found {type(values).__name__}")
    for override in overrides:
        _apply(values, override)
    values, replaced = _with_preset(values)
    _read_icu_file(values, folder)
    try:
        recipe = Recipe.model_validate(values)
    except ValidationError as error:
        raise ConfigError(f"recipe {name}: {first_problems(error, values)}") from error
    departures = tuple(place for place, preset in replaced.items() if _departs(recipe, place, preset=preset))
    return recipe.model_copy(update={"departures": departures}), folder


def shipped_recipes() -> list[str]:
    """Names of the recipes inside the package."""
    return _stems("vgid.pipeline.recipes")


def load_examples(data: DataSettings, *, folder: Path) -> list[Example]:
    """Every example of a recipe's data, checked.

    Raises:
        DataError: naming file and row.
    """
    from vgid.data.readers import load_sources

    sources, root = sources_of(data, folder=folder)
    examples = load_sources(sources, root=root)
    if unknown := data.names.keys() - {example.subject_id for example in examples}:
        raise ConfigError(f"data.names: subject {min(unknown)!r} is not in the data")
    return [
        replace(example, subject_name=data.names.get(example.subject_id, example.subject_name)) for example in examples
    ]


def sources_of(data: DataSettings, *, folder: Path) -> tuple[list[Source], Path]:
    """The sources of a recipe's data and the root that no image path may leave."""
    from vgid.data.readers import Source, world_sources

    if data.world is not None:
        world = world_folder(data.world, folder=folder)
        return world_sources(world), world
    root = (folder / data.root).resolve()
    return [Source(path=root / item.path, split=item.split or "", photo=item.photo) for item in data.sources], root


def world_folder(world: str, *, folder: Path) -> Path:
    """Directory of a fictitious world: the shipped one, or a path."""
    if world == "shipped":
        from vgid.data.fictitious import shipped_world

        return shipped_world()
    return (folder / world).resolve()


@dataclass(frozen=True, slots=True, kw_only=True)
class Preset:
    """A published way of teaching, as settings."""

    name: str
    source: str
    """Where its settings come from."""
    unknown: str
    """What the source does not say, and what stands here in its place."""
    settings: Mapping[str, Any]


def load_preset(name: str) -> Preset:
    """A shipped preset.

    Raises:
        ConfigError: there is none of that name.
    """
    if name not in shipped_presets():
        raise ConfigError(f"preset {name!r} is unknown; choose one of {', '.join(shipped_presets())}")
    file = resources.files("vgid.pipeline.presets") / f"{name}.yaml"
    values = yaml.safe_load(file.read_text(encoding="utf-8"))
    return Preset(name=name, source=values["source"], unknown=values["unknown"], settings=values["settings"])


def shipped_presets() -> list[str]:
    """Names of the presets inside the package."""
    return _stems("vgid.pipeline.presets")


def _stems(package: str) -> list[str]:
    return sorted(Path(file.name).stem for file in resources.files(package).iterdir() if file.name.endswith(".yaml"))


def _with_preset(values: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The settings laid over those of the preset they name; groups are joined, anything else is replaced.

    With what was replaced, as the preset has it, by place.
    """
    values.pop("departures", None)  # of a recipe that was read and written again; they are found anew
    if (name := values.get("preset")) is None:
        return values, {}
    replaced: dict[str, Any] = {}

    def over(base: Mapping[str, Any], own: Mapping[str, Any], path: str) -> dict[str, Any]:
        joined = dict(base)
        for key, value in own.items():
            place = f"{path}{key}"
            if isinstance(value, dict) and isinstance(base.get(key), dict):
                joined[key] = over(base[key], value, f"{place}.")
            else:
                if key in base:
                    replaced[place] = base[key]
                joined[key] = value
        return joined

    return over(load_preset(str(name)).settings, values, ""), replaced


def _departs(recipe: Recipe, place: str, *, preset: Any) -> bool:
    """Whether a setting means something else than the preset's; written otherwise (2e-5 is text in YAML) it may not."""
    *groups, leaf = place.split(".")
    group: Any = recipe
    for name in groups:
        group = getattr(group, name)
    meant = TypeAdapter[Any](type(group).model_fields[leaf].annotation).validate_python(preset)
    return getattr(group, leaf) != meant


def _read_icu_file(values: dict[str, Any], folder: Path) -> None:
    """Put the text of `teacher.icu.file` in its place: the recipe then holds all that targets depend on."""
    teacher = values.get("teacher")
    icu = teacher.get("icu") if isinstance(teacher, dict) else None
    if not isinstance(icu, dict) or "file" not in icu:
        return
    path = folder / str(icu.pop("file"))
    if "text" in icu or "template" in icu:
        raise ConfigError("teacher.icu needs exactly one of `template`, `text` and `file`")
    try:
        icu["text"] = path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"teacher.icu.file {path}: cannot be read as UTF-8 text ({error})") from error


def _read(name: str) -> tuple[str, Path]:
    path = Path(name)
    if path.is_file():
        try:
            return path.read_text(encoding="utf-8"), path.resolve().parent
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"recipe {name}: cannot be read as UTF-8 text ({error})") from error
    shipped = resources.files("vgid.pipeline.recipes") / f"{name}.yaml"
    if shipped.is_file():
        return shipped.read_text(encoding="utf-8"), Path.cwd()
    raise ConfigError(f"recipe {name!r}: no such file, nor a shipped recipe ({', '.join(shipped_recipes())})")


def _apply(values: dict[str, Any], override: str) -> None:
    path, found, text = override.partition("=")
    if not found or not path:
        raise ConfigError(f"--set {override!r}: expected key.key=value")
    *parents, leaf = path.split(".")
    place: Any = values
    for parent in parents:
        place = place.setdefault(parent, {}) if isinstance(place, dict) else None
        if not isinstance(place, dict):
            raise ConfigError(f"--set {override!r}: {parent!r} is not a group of settings")
    try:
        place[leaf] = read_yaml(text)
    except yaml.YAMLError as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"--set {override!r}: the value is not valid YAML ({reason})") from error
