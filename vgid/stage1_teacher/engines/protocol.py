"""The seam between vgid and an inference engine: what a request holds, what a response must hold.

Both engines return the same record, so a property tested on one is tested on the other. Log-probabilities are natural,
T = 1, of the unmodified distribution (before any bias or sampling filter), float32 and not yet rounded.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

import numpy as np

from vgid.errors import ConfigError
from vgid.stage1_teacher.options import DEFAULT_OPTIONS, EngineName, EngineOptions

if TYPE_CHECKING:
    from PIL import Image as PIL


@dataclass(frozen=True, slots=True, kw_only=True)
class TeacherRequest:
    """One prompt. The response is generated, or forced when `forced_token_ids` is given."""

    request_id: str
    text: str
    """The user turn, instruction included. Special tokens in it are refused."""
    image: PIL.Image | None
    """Upright 8-bit RGB, already perturbed."""
    pixel_sha256: str | None = None
    """Hash of the image's pixels and size, where it is known: requests that share one share the encoder's work."""
    prefix_token_ids: tuple[int, ...] = ()
    """Start of the assistant's turn that is given, not scored (prefill)."""
    forced_token_ids: tuple[int, ...] | None = None
    """Score exactly these response tokens instead of generating (response kind `reference`)."""
    max_new_tokens: int = 64
    temperature: float = 0.0
    """0: greedy."""
    top_p: float = 1.0
    """Nucleus to sample from."""
    seed: int | None = None
    """Of the sampling; the answer depends on it and on nothing that runs beside."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TeacherResponse:
    """Response tokens with their distributions. T response positions, K candidates; entry t belongs to token t."""

    request_id: str
    prompt_token_ids: tuple[int, ...]
    """Expanded prompt (one id per image patch group), prefix included."""
    token_ids: np.ndarray
    """int32 [T], EOS included when the model stopped by itself."""
    token_logprob: np.ndarray
    """float32 [T]."""
    token_rank: np.ndarray
    """int32 [T], 1 = most likely; ties count against the token."""
    topk_ids: np.ndarray
    """int32 [T, K], most likely first."""
    topk_logprobs: np.ndarray
    """float32 [T, K], nats, not renormalised."""
    logsumexp: np.ndarray | None
    """float32 [T], of the raw logits; None where the engine does not see all of them."""
    entropy: np.ndarray | None
    """float32 [T], nats, over the full vocabulary; None where the engine does not see all of it."""
    finish_reason: Literal["stop", "length", "forced"]


class Teacher(Protocol):
    """A frozen model that answers requests."""

    engine_id: str
    """Engine, version, dtype and head dtype: part of every target's identity."""
    vocab_size: int
    """Width of the logits."""

    def run(self, requests: Iterable[TeacherRequest]) -> Iterator[TeacherResponse]:
        """Answer requests in any order, holding a bounded number of them.

        Raises:
            TeacherError: a request is malformed, or the engine answered short.
        """
        ...

    def close(self) -> None:
        """Give the memory back; the engine cannot be used afterwards."""
        ...


class KeptTeacher:
    """A teacher that stays loaded from one pass to the next; whoever loaded it closes it."""

    def __init__(self, teacher: Teacher) -> None:
        self.engine_id, self.vocab_size, self.run = teacher.engine_id, teacher.vocab_size, teacher.run

    def close(self) -> None:
        """Nothing."""


def build_teacher(
    engine: EngineName,
    model: Path | str,
    *,
    num_topk: int,
    dtype: str = "float32",
    head_dtype: str | None = None,
    options: EngineOptions = DEFAULT_OPTIONS,
) -> Teacher:
    """Load a model into an engine.

    Args:
        engine: `vllm` or `transformers`.
        model: A directory, or a Hugging Face model id.
        num_topk: Candidates returned per position.
        dtype: `float32`, `bfloat16` or `float16`.
        head_dtype: `float32`, or None for the last layer as the rest.
        options: How the machine is used; `transformers` heeds none of them.

    Raises:
        ConfigError: unknown engine, or its library is not installed.
        TeacherError: the model does not load, or not into the memory there is.
    """
    if engine == "vllm":
        from vgid.stage1_teacher.engines.vllm import VllmTeacher

        return VllmTeacher(model, num_topk=num_topk, dtype=dtype, head_dtype=head_dtype, options=options)
    if engine == "transformers":
        from vgid.stage1_teacher.engines.transformers import TransformersTeacher

        return TransformersTeacher(model, num_topk=num_topk, dtype=dtype, head_dtype=head_dtype)
    raise ConfigError(f"engine {engine!r} is unknown; choose vllm or transformers")
