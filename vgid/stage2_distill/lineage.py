"""`vgid.json`: what a student was made from, and the sign that it is complete.

Two runs are the same when settings, student weights and provenance agree. Library versions do not count; they are
recorded.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from vgid.data.models import weights_fingerprint
from vgid.errors import DistillError
from vgid.stage2_distill.settings import DistillSettings

FILE = "vgid.json"
SCHEMA_VERSION = 1


def run_identity(student: str, *, settings: DistillSettings, provenance: Mapping[str, Any]) -> dict[str, Any]:
    """Everything the student depends on, as plain JSON values.

    Args:
        student: Directory (identified by its weights, wherever it lies) or Hugging Face id.
        settings: Stage two's part of the recipe.
        provenance: What the caller knows beside them: cache manifest hash, data hash, base model, …
    """
    directory = Path(student)
    base = weights_fingerprint(directory) if directory.is_dir() else student
    # How often a checkpoint is written changes no student, and is what one adds after the first kill.
    asked = settings.model_dump(mode="json", exclude={"save_steps"})
    identity = {"student": base, "settings": asked, "provenance": dict(provenance)}
    return json.loads(json.dumps(identity))


def installed_versions() -> dict[str, str]:
    """Versions of the libraries that decide numbers."""
    versions = {}
    for name in ("vgid", "torch", "transformers", "accelerate", "peft"):
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions


def read_finished(out: Path) -> dict[str, Any] | None:
    """The lineage of the complete student in `out`; None where there is nothing yet.

    Raises:
        DistillError: `out` holds something else, or its lineage is torn.
    """
    if (out / FILE).is_file():
        return _read_lineage(out / FILE)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise DistillError(
            f"{out} exists and holds no {FILE}, so it is not a student of vgid; choose another directory"
        )
    return None


def _read_lineage(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        reason = str(error)
    else:
        match content:
            case {"base": str(), "identity": {"student": str(), "settings": {}, "provenance": {}}, "result": {}}:
                return content
            case _:
                reason = "it lacks base, identity or result"
    raise DistillError(
        f"{path} is torn or not by vgid ({reason}); restore it, choose another directory, or delete {path.parent} and "
        "make the student again"
    )


def check_same_run(found: Mapping[str, Any], *, asked: Mapping[str, Any], where: Path) -> None:
    """Refuse to mix two runs in one place.

    Raises:
        DistillError: naming what differs, both values, and the place.
    """
    differing = list(_differences(found, asked, ""))
    if differing:
        raise DistillError(
            f"{where} belongs to another run: {'; '.join(differing)}; choose another directory or delete it"
        )


def _differences(found: Any, asked: Any, name: str) -> list[str]:
    if isinstance(found, Mapping) and isinstance(asked, Mapping):
        keys = sorted({*found, *asked})
        return [
            line for key in keys for line in _differences(found.get(key), asked.get(key), f"{name}.{key}".strip("."))
        ]
    return [] if found == asked else [f"{name} is {found!r} there and {asked!r} now"]
