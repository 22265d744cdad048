"""Save a finished student: as a model directory that transformers and vLLM load, or as an adapter for its base.

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

from vgid.data.chat import load_processor
from vgid.data.models import ADAPTER_FILE, resolve_model, weights_fingerprint
from vgid.errors import DistillError
from vgid.stage2_distill.checkpoints import hash_files, write_json
from vgid.stage2_distill.lineage import FILE, SCHEMA_VERSION, installed_versions, read_finished
from vgid.stage2_distill.settings import DistillSettings, Export
from vgid.stage2_distill.student import load_base, merged


def save_student(
    model: Any,
    *,
    processor: Any,
    out: Path,
    base: str,
    identity: Mapping[str, Any],
    result: Mapping[str, Any],
    export: Export = "merged",
) -> None:
    """Write weights, processor, generation settings, model card and lineage to `out`.

    Args:
        model: The trained student; a `PeftModel` is merged in place unless its adapter alone is saved.
        processor: The student's.
        out: Must not exist, or be empty.
        base: What to call the model the student came from, where the provenance does not say.
        identity: From `run_identity`.
        result: What the training did, as JSON values.
        export: The whole model, or its adapter alone, in PEFT's form.

    Raises:
        DistillError: a weight is not finite.
    """
    base = identity["provenance"].get("base") or base
    _check_finite(model)  # before the merging, whose rounding works on bits
    model = merged(model, seed=identity["settings"]["seed"]) if export == "merged" else model
    draft = out.with_name(f".{out.name}.draft")
    shutil.rmtree(draft, ignore_errors=True)
    if export == "merged":
        model.save_pretrained(draft)
        use_published_layout(draft, model_type=model.config.model_type)
    else:
        config = model.peft_config["default"]
        config.base_model_name_or_path, config.revision = base, identity["provenance"].get("revision") or None
        model.save_pretrained(draft, save_embedding_layers=False)
    processor.save_pretrained(draft)
    (draft / "README.md").write_text(_card(base=base, identity=identity, result=result))
    lineage = {"schema_version": SCHEMA_VERSION, "base": base, "identity": dict(identity), "result": dict(result)}
    write_json(draft / FILE, {**lineage, "versions": installed_versions(), "files": hash_files(draft)})
    draft.replace(out)


def merge_adapter(adapter: Path, *, out: Path, base: str | None = None) -> None:
    """Add an exported adapter into its base's weights: the same student as if it had been saved merged.

    Args:
        adapter: Directory of a student saved with `export: adapter`.
        out: Directory of the whole model; appears when complete.
        base: Where the base lies now; None for where it lay.

    Raises:
        ConfigError: the base is not found.
        DistillError: `adapter` is none, its base has other weights, or `out` is taken.
    """
    lineage = read_finished(adapter)
    if lineage is None or not (adapter / ADAPTER_FILE).is_file():
        raise DistillError(f"{adapter} is no adapter of vgid; `vgid distill` saves one with distill.export=adapter")
    if read_finished(out) is not None:
        raise DistillError(f"{out} holds a student already; choose another directory or delete it")
    identity: dict[str, Any] = lineage["identity"]
    named = base or lineage["base"]
    directory = resolve_model(named, revision=None if base else identity["provenance"].get("revision") or None)
    if (found := weights_fingerprint(directory)) != identity["student"]:
        raise DistillError(
            f"{adapter} was trained on a base with the weights {identity['student'][:12]}…, {named!r} has "
            f"{found[:12]}…; name the right one with --base"
        )
    from peft import PeftModel

    settings = DistillSettings.model_validate(identity["settings"])
    model = PeftModel.from_pretrained(load_base(str(directory), settings=settings), adapter)
    save_student(
        model,
        processor=load_processor(adapter),
        out=out,
        base=lineage["base"],
        identity={**identity, "settings": {**identity["settings"], "export": "merged"}},
        result=lineage["result"],
    )


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
    name = Path(base).name if Path(base).is_dir() else base
    data = ModelCardData(
        base_model=name,
        library_name="peft" if identity["settings"].get("export") == "adapter" else "transformers",
        pipeline_tag="image-text-to-text",
        tags=["vgid", "unlearning"],
    )
    seeds = {
        "teacher": identity["provenance"].get("teacher_settings", {}).get("seed"),
        "distill": identity["settings"].get("seed"),
    }
    sections = [
        f"---\n{data.to_yaml()}\n---",
        f"# Student distilled from {name}",
        "Made by vgid (Visual-Noise Guided In-Context Distillation): what the teacher was told to forget was trained "
        "out of the weights. Unlearning is a matter of degree: read the evaluation before you rely on it.",
        *(
            f"## {title}\n```yaml\n{yaml.safe_dump(dict(content), sort_keys=False)}```"
            for title, content in (
                ("Provenance", {"student": identity["student"], **identity["provenance"]}),
                ("Settings", identity["settings"]),
                ("Seeds", seeds),
                ("Training", {key: value for key, value in result.items() if key != "losses"}),
                ("Versions", installed_versions()),
            )
        ),
    ]
    return str(ModelCard("\n\n".join(sections) + "\n"))
