"""Save a finished student as a model directory that transformers and vLLM load.

Everything is written beside `out`, `vgid.json` last, and renamed into place: `out` is whole or absent. Weights keep the
type they were trained in. LLaVA students are saved in the key layout of published LLaVA checkpoints
(`vision_tower.vision_model.…`), the one vLLM reads; transformers reads both.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import ModelCard, ModelCardData
from safetensors.torch import load_file, save_file

from vgid.errors import DistillError
from vgid.stage2_distill.checkpoints import hash_files, write_json
from vgid.stage2_distill.lineage import FILE, SCHEMA_VERSION, installed_versions
from vgid.stage2_distill.student import merged


def save_student(
    model: Any, *, processor: Any, out: Path, base: str, identity: Mapping[str, Any], result: Mapping[str, Any]
) -> None:
    """Write weights (adapters merged), processor, generation settings, model card and lineage to `out`.

    Args:
        model: The trained student; a `PeftModel` is merged in place.
        processor: The student's.
        out: Must not exist, or be empty.
        base: What to call the model the student came from.
        identity: From `run_identity`.
        result: What the training did, as JSON values.

    Raises:
        DistillError: a weight is not finite.
    """
    model = merged(model)
    _check_finite(model)
    draft = out.with_name(f".{out.name}.draft")
    shutil.rmtree(draft, ignore_errors=True)
    model.save_pretrained(draft)
    use_published_layout(draft, model_type=model.config.model_type)
    processor.save_pretrained(draft)
    (draft / "README.md").write_text(_card(base=base, identity=identity, result=result))
    lineage = {"schema_version": SCHEMA_VERSION, "base": base, "identity": dict(identity), "result": dict(result)}
    write_json(draft / FILE, {**lineage, "versions": installed_versions(), "files": hash_files(draft)})
    draft.replace(out)


def check_saveable(model: Any) -> None:
    """Find out before the training, not after it, whether transformers will agree to save the model.

    Raises:
        DistillError: the base's generation settings contradict each other.
    """
    try:
        model.generation_config.validate(strict=True)
    except ValueError as error:
        reason = " ".join(str(error).split())
        raise DistillError(
            f"the base's generation_config.json cannot be saved again: {reason}; repair it first"
        ) from error


def _check_finite(model: Any) -> None:
    for name, parameter in model.named_parameters():
        if not parameter.isfinite().all():
            raise DistillError(f"weight {name} is not finite after training; lower learning_rate or set max_grad_norm")


def use_published_layout(directory: Path, *, model_type: str) -> None:
    """Rename a saved model's weights to what published checkpoints of its kind, and with them vLLM, call them."""
    if model_type != "llava":
        return
    for path in directory.glob("*.safetensors"):
        renamed = {_published_name(name): tensor for name, tensor in load_file(path).items()}
        save_file(renamed, path, metadata={"format": "pt"})
    for index in directory.glob("*.safetensors.index.json"):
        content = json.loads(index.read_text())
        content["weight_map"] = {_published_name(name): file for name, file in content["weight_map"].items()}
        write_json(index, content)


def _published_name(name: str) -> str:
    head, tower, rest = name.partition("vision_tower.")
    if not tower or rest.startswith("vision_model."):
        return name
    return f"{head}{tower}vision_model.{rest}"


def _card(*, base: str, identity: Mapping[str, Any], result: Mapping[str, Any]) -> str:
    data = ModelCardData(
        base_model=base, library_name="transformers", pipeline_tag="image-text-to-text", tags=["vgid", "unlearning"]
    )
    sections = [
        f"---\n{data.to_yaml()}\n---",
        f"# Student distilled from {base}",
        "Made by vgid (Visual-Noise Guided In-Context Distillation): what the teacher was told to forget was trained "
        "out of the weights. Unlearning is a matter of degree: read the evaluation before you rely on it.",
        *(
            f"## {title}\n```yaml\n{yaml.safe_dump(dict(content), sort_keys=False)}```"
            for title, content in (
                ("Provenance", {"student": identity["student"], **identity["provenance"]}),
                ("Settings", identity["settings"]),
                ("Training", {key: value for key, value in result.items() if key != "losses"}),
                ("Versions", installed_versions()),
            )
        ),
    ]
    return str(ModelCard("\n\n".join(sections) + "\n"))
