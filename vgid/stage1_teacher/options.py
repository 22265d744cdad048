"""How the engine uses the machine: flags of the command line, none of which changes a result."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from vgid.data.models import context_length

EngineName = Literal["vllm", "transformers"]


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineOptions:
    """How the machine is used; changes no result."""

    tensor_parallel: int = 1
    """GPUs that share one copy of the model."""
    gpu_memory: float = 0.9
    """Share of a GPU's memory that the engine may take."""
    max_model_len: int | None = None
    """Longest prompt plus response in tokens; None takes the model's own limit, 4096 at most."""
    window: int = 256
    """Most requests in the engine at one time."""
    trace_replay: bool = False
    """Decode along reference answers instead of scoring them as part of the prompt; vLLM 0.29 and later on a GPU."""


DEFAULT_OPTIONS = EngineOptions()
_LONGEST = 4096
"""Memory is set aside for the longest request, and a question about one picture is seldom longer."""


def default_length(model: Path | str, options: EngineOptions) -> int:
    """Most tokens of prompt and response together: as asked for, or the model's own limit, 4096 at most."""
    return options.max_model_len or min(_LONGEST, context_length(model) or _LONGEST)
