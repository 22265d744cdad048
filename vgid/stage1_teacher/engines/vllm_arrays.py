"""vLLM's log-probabilities as the arrays its engine core hands out, before they become Python lists.

vLLM's front end turns every array of a step into lists and appends them number by number, which costs more than
computing them. Here the arrays are taken off the core's outputs on their way to the front end; what the front end then
gives for a request holds its tokens and no log-probabilities. The seam (`engine_core.get_output`, an output's
`new_logprobs` and `new_prompt_logprobs_tensors`) was read in the sources of vLLM 0.26 to 0.33 and is the same in all of
them; where it is not found, `tap` says so and the engine reads vLLM's own container, with equal results.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from vgid.errors import TeacherError


class Rows(NamedTuple):
    """Log-probabilities of consecutive positions; column 0 is the token itself, columns 1 to K the candidates."""

    token_ids: np.ndarray
    """int32 [T, K+1]."""
    logprobs: np.ndarray
    """float32 [T, K+1], nats."""
    ranks: np.ndarray
    """int32 [T], of column 0."""


class Tap:
    """Collects the rows of every request in flight."""

    def __init__(self) -> None:
        self.enabled = True
        """Whether arrays are taken; where not, they go on to vLLM's own containers."""
        self._rows: dict[str, list[Any]] = {}

    def take(self, request_id: str, *, count: int) -> Rows:
        """The last `count` rows of a finished request, which is forgotten; `request_id` is the engine's own.

        Raises:
            TeacherError: there are fewer.
        """
        steps = self._rows.pop(request_id, [])
        found = sum(len(step[1]) for step in steps)
        if found < count or not count:
            raise TeacherError(f"request {request_id!r}: vLLM returned {found} of {count} rows")
        if len(steps) > 1:
            ids, logprobs, ranks = (np.concatenate([step[part] for step in steps])[-count:] for part in range(3))
        else:  # prompt log-probabilities: all rows at once, as tensors
            ids, logprobs, ranks = (np.asarray(steps[0][part])[-count:] for part in range(3))
        return Rows(ids.astype(np.int32), logprobs.astype(np.float32), ranks.astype(np.int32))

    def forget(self) -> None:
        """Drop what requests that were given up have left."""
        self._rows.clear()

    def collect(self, outputs: Any) -> Any:
        """Take the arrays off one step's outputs and hand the outputs on."""
        for output in outputs.outputs if self.enabled else ():
            for name in ("new_prompt_logprobs_tensors", "new_logprobs"):
                step = getattr(output, name)
                if step is not None:
                    self._rows.setdefault(output.request_id, []).append(step)
                    setattr(output, name, None)
        return outputs


def tap(engine: Any, output_type: Any) -> Tap | None:
    """Put a `Tap` between a `vllm.LLMEngine`'s core and front end; None where this vLLM has no such seam.

    Args:
        engine: The engine.
        output_type: Its class of outputs, `EngineCoreOutput`.
    """
    get_output: Callable[[], Any] | None = getattr(getattr(engine, "engine_core", None), "get_output", None)
    fields = set(getattr(output_type, "__struct_fields__", ()))
    if get_output is None or not {"request_id", "new_logprobs", "new_prompt_logprobs_tensors"} <= fields:
        return None
    collected = Tap()
    engine.engine_core.get_output = lambda: collected.collect(get_output())
    return collected


def rows_of_flat(flat: Any, *, count: int, request_id: str) -> Rows:
    """The last `count` rows of vLLM's own `FlatLogprobs`.

    Counted from the end, which leaves out the prompt's rows, whatever number of ids its image expanded to.

    Raises:
        TeacherError: there are fewer, or they differ in width.
    """
    starts = np.asarray(flat.start_indices[-count:], np.int64) if count else np.empty(0, np.int64)
    ends = np.asarray(flat.end_indices[-count:], np.int64) if count else np.empty(0, np.int64)
    widths = np.unique(ends - starts)
    if len(starts) != count or len(widths) != 1:
        raise TeacherError(f"request {request_id!r}: vLLM returned {len(starts)} rows of widths {widths} for {count}")
    begin, width = int(starts[0]), int(widths[0])
    block = slice(begin, begin + count * width)
    ids = np.asarray(flat.token_ids[block], np.int32).reshape(count, width)
    logprobs = np.asarray(flat.logprobs[block], np.float32).reshape(count, width)
    return Rows(ids, logprobs, np.asarray(flat.ranks[begin : begin + count * width : width], np.int32))
