"""Cached rows -> padded tensors. The only place where the one-position shift between logits and tokens lives.

A row's sequence is the student's own prompt (plain question, clean image, own processor expansion) followed by the
stored response ids, never by re-tokenised text. Prompts are padded on the left and responses on the right, so that
every response starts in the same column P:

    column       0 … P-1            P … P+T-1
    content      [pad] prompt       response [pad]
    its logits   at P-1 … P+T-2 predict columns P … P+T-1

The teacher's prompt may have any other length; it is not stored and not needed. What this gives up: packing several
short rows into one sequence.

Dimension key: B sequences, P padded prompt, T padded response, S = P + T, K candidates, V student vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple, NotRequired, TypedDict

import numpy as np
import torch
from PIL import Image as PIL
from torch import Tensor
from torch.nn.functional import pad

from vgid.cache.schema import NO_CANDIDATE, Target
from vgid.data.chat import chat_prompt, encode_prompt, image_token_ids
from vgid.data.examples import Example
from vgid.data.images import image_sha256, open_image
from vgid.errors import DistillError
from vgid.stage2_distill.settings import Role, TargetSelection

MASS_TOLERANCE = 0.02
"""Candidates and tail must sum to 1 within this; the fp16 grid moves the sum by at most 0.004."""

_SEQUENCE_INPUTS = ("input_ids", "attention_mask", "mm_token_type_ids", "token_type_ids")


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainItem:
    """One cached row that trains, with its question."""

    example: Example
    target: Target
    role: Role
    weight: float


@dataclass(frozen=True, slots=True, kw_only=True)
class SelectedItems:
    """What the selections left to train on."""

    items: tuple[TrainItem, ...]
    num_truncated: int
    """Rows left out because the teacher's answer was cut at its token limit (`finish_reason` `length`)."""


class TeacherPrompt(NamedTuple):
    """What a teacher in the loop is asked about a row."""

    text: str
    """The user's turn, instruction included."""
    image: PIL.Image | None
    """Perturbed, where the row's view says so."""


class Batch(TypedDict):
    """Rows ready for a student."""

    inputs: dict[str, Any]
    """Keyword arguments of the student's forward, `attention_mask` and `logits_to_keep` included."""
    token_ids_BT: Tensor
    """int64, the stored response tokens; 0 where padded."""
    mask_BT: Tensor
    """bool, True where a response token stands."""
    topk_ids_BTK: Tensor
    """int64, below V; 0 where padded."""
    topk_logprobs_BTK: Tensor
    """float32, nats; -inf where padded."""
    tail_logprob_BT: Tensor
    """float32, nats; -inf where padded."""
    weight_B: Tensor
    """float32, factor on the row's loss."""
    forget_B: Tensor
    """bool, True for rows of the forget term."""
    teacher_inputs: NotRequired[dict[str, Any]]
    """As `inputs`, of a teacher in the loop: its own prompts, the same responses."""


# --- which rows train ---


def build_items(
    examples: Mapping[str, Example], targets: Sequence[Target], selections: Sequence[TargetSelection]
) -> SelectedItems:
    """Join the selected rows with their examples, in order of `target_id`.

    Raises:
        DistillError: a selection matches nothing, two match one row, an example is missing or has another image than
            the teacher saw, or every selected row is truncated.
    """
    hashes: dict[str, str] = {}
    items, num_truncated, used = [], 0, set[int]()
    for target in sorted(targets, key=lambda row: row.target_id):
        matching = [index for index, selection in enumerate(selections) if selection.matches(target)]
        used.update(matching)
        if not matching:
            continue
        if len(matching) > 1:
            said = " and ".join(repr(selections[index].describe()) for index in matching)
            raise DistillError(f"row {target.target_id} is selected twice, by {said}; make the selections disjoint")
        selection = selections[matching[0]]
        if target.finish_reason == "length" and not selection.truncated:
            num_truncated += 1
            continue
        example = _example_of(target, examples, hashes)
        items.append(TrainItem(example=example, target=target, role=selection.role, weight=selection.weight))
    for index, selection in enumerate(selections):
        if index not in used:
            raise DistillError(
                f"selection {selection.describe()!r} matches no cached row; the cache has {census(targets)}"
            )
    if not items:
        raise DistillError(f"all {num_truncated} selected rows are truncated; raise the teacher's max_new_tokens")
    return SelectedItems(items=tuple(items), num_truncated=num_truncated)


def census(targets: Sequence[Target]) -> str:
    """The kinds of rows in a cache, one `split view response_kind modality task (count)` each, for messages."""
    kinds: dict[str, int] = {}
    for row in targets:
        kind = f"{row.split} {row.view} {row.response_kind} {row.modality} {row.task}"
        kinds[kind] = kinds.get(kind, 0) + 1
    return ", ".join(f"{kind} ({count:,})" for kind, count in sorted(kinds.items())) or "no rows"


def _example_of(target: Target, examples: Mapping[str, Example], hashes: dict[str, str]) -> Example:
    example = examples.get(target.example_id)
    if example is None:
        raise DistillError(
            f"row {target.target_id}: example {target.example_id!r} is not in the data ({len(examples):,} examples); "
            "distil with the data the cache was made from"
        )
    if example.example_id not in hashes:
        hashes[example.example_id] = "" if example.image is None else image_sha256(example.image)
    if (target.image_sha256 or "") != hashes[example.example_id]:
        raise DistillError(
            f"row {target.target_id}: example {target.example_id!r} has another image than the teacher saw (sha256 "
            f"{hashes[example.example_id] or 'none'} here, {target.image_sha256} there); use the cache's data"
        )
    return example


# --- what the teacher said ---


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidates:
    """The teacher's distribution at T positions as the loss wants it: ids below V, own token among them."""

    ids: np.ndarray
    """int64 [T, K]; 0 where there is none."""
    logprobs: np.ndarray
    """float64 [T, K], nats; -inf where there is none."""
    tail: np.ndarray
    """float64 [T], nats."""


def build_candidates(target: Target, *, vocab_size: int) -> Candidates:
    """Stored top-k plus the response token itself, cut to the student's vocabulary.

    A response token outside the top-k has an exact log-probability of its own: it becomes one more candidate and leaves
    the tail. Ids the student lacks (151,936 against 152,064) go into the tail. What fills a position that stores fewer
    candidates than the row's widest has no probability and stays that way.

    Raises:
        DistillError: ids repeat or are negative, or the probabilities do not sum to 1.
    """
    ids, logprobs = target.topk_ids.astype(np.int64), target.topk_logprobs.astype(np.float64)
    _check_distribution(target, ids, logprobs)
    outside = ~(ids == target.token_ids[:, None]).any(-1)
    own = np.where(outside, target.token_logprob.astype(np.float64), -np.inf)
    tail = _log_difference(target.tail_logprob.astype(np.float64), own)
    if outside.any():
        ids = np.concatenate([ids, target.token_ids[:, None].astype(np.int64)], axis=-1)
        logprobs = np.concatenate([logprobs, own[:, None]], axis=-1)
    foreign = ids >= vocab_size
    tail = np.logaddexp(tail, np.logaddexp.reduce(np.where(foreign, logprobs, -np.inf), axis=-1))
    logprobs = np.where(foreign, -np.inf, logprobs)
    return Candidates(ids=np.where(np.isneginf(logprobs), 0, ids), logprobs=logprobs, tail=tail)


def _check_distribution(target: Target, ids: np.ndarray, logprobs: np.ndarray) -> None:
    ordered = np.sort(ids, axis=-1)
    if ((ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] != NO_CANDIDATE)).any():
        raise DistillError(f"row {target.target_id}: a position stores one id twice; the cache is damaged, verify it")
    if ((ids < 0) & ~np.isneginf(logprobs)).any():
        raise DistillError(f"row {target.target_id}: a position stores an id below 0; the cache is damaged, verify it")
    mass = np.exp(logprobs).sum(-1) + np.exp(target.tail_logprob.astype(np.float64))
    worst = mass[np.abs(mass - 1).argmax()]
    if not abs(worst - 1) <= MASS_TOLERANCE:
        raise DistillError(f"row {target.target_id}: probabilities sum to {worst:.4f}, not 1; verify the cache")


def _log_difference(larger: np.ndarray, smaller: np.ndarray) -> np.ndarray:
    """log(exp(larger) - exp(smaller)), -inf where rounding left nothing or less."""
    with np.errstate(divide="ignore"):
        return np.log(np.maximum(np.exp(larger) - np.exp(smaller), 0.0))


# --- tensors ---


def collate(
    items: Sequence[TrainItem],
    *,
    processor: Any,
    vocab_size: int,
    teacher_prompt: Callable[[TrainItem], TeacherPrompt] | None = None,
) -> Batch:
    """Pad rows into one batch; rows with and without an image may be mixed.

    Args:
        items: B rows.
        processor: The student's.
        vocab_size: V, the width of the student's logits.
        teacher_prompt: What a teacher in the loop is asked; None where there is none.

    Raises:
        DistillError: a response holds an image token or an id beyond V, or the images of the batch cannot be joined.
        DataError: an image is damaged, or a question holds a special token.
    """
    for item in items:
        _check_response(item.target, vocab_size, processor)
    token_ids_BT = _stack([torch.from_numpy(item.target.token_ids.astype(np.int64)) for item in items], fill=0)
    lengths = torch.tensor([len(item.target.token_ids) for item in items])
    mask_BT = torch.arange(token_ids_BT.shape[1]) < lengths[:, None]
    prompts = [_encode(processor, item.example.question, _picture(item.example)) for item in items]
    batch = Batch(
        inputs=_model_inputs(prompts, token_ids_BT, mask_BT, pad_id=_pad_id(processor)),
        token_ids_BT=token_ids_BT,
        mask_BT=mask_BT,
        **teacher_tensors(items, vocab_size=vocab_size),
        weight_B=torch.tensor([item.weight for item in items]),
        forget_B=torch.tensor([item.role == "forget" for item in items]),
    )
    if teacher_prompt is not None:
        asked = [_encode(processor, *teacher_prompt(item)) for item in items]
        batch["teacher_inputs"] = _model_inputs(asked, token_ids_BT, mask_BT, pad_id=_pad_id(processor))
    return batch


class TeacherTensors(TypedDict):
    """What the teacher said, as in `Batch`."""

    topk_ids_BTK: Tensor
    topk_logprobs_BTK: Tensor
    tail_logprob_BT: Tensor


def teacher_tensors(items: Sequence[TrainItem], *, vocab_size: int) -> TeacherTensors:
    """The teacher's part of a batch; see `build_candidates`."""
    candidates = [build_candidates(item.target, vocab_size=vocab_size) for item in items]
    return TeacherTensors(
        topk_ids_BTK=_stack([torch.from_numpy(row.ids) for row in candidates], fill=0),
        topk_logprobs_BTK=_stack([torch.from_numpy(row.logprobs).float() for row in candidates], fill=-torch.inf),
        tail_logprob_BT=_stack([torch.from_numpy(row.tail).float() for row in candidates], fill=-torch.inf),
    )


def response_logits(student: Any, batch: Batch, *, as_teacher: bool = False) -> Tensor:
    """Run the student, or a teacher on its own prompts: logits [B, T+1, V], column t predicting response token t.

    The last column, of what would follow the response, is left in place: to cut it off costs a copy of the gradient.

    Raises:
        DistillError: the model ignores `logits_to_keep`.
    """
    num_positions = batch["token_ids_BT"].shape[1]
    inputs = batch["teacher_inputs"] if as_teacher else batch["inputs"]  # type: ignore[typeddict-item]
    assert torch.equal(
        inputs["input_ids"][:, -num_positions:][batch["mask_BT"]], batch["token_ids_BT"][batch["mask_BT"]]
    )
    logits = student(**inputs).logits
    if logits.shape[1] != num_positions + 1:
        raise DistillError(
            f"the model returned logits of {logits.shape[1]} positions where {num_positions + 1} were asked"
        )
    return logits


def last_hidden_states(student: Any, batch: Batch, *, head: torch.nn.Linear) -> Tensor:
    """What `head`, the student's output layer, would be given for `response_logits`: [B, T+1, D]."""
    with bypassed(head):
        return response_logits(student, batch)


@contextmanager
def bypassed(layer: torch.nn.Module) -> Iterator[None]:
    """Let a layer pass its input on."""
    layer.forward = lambda inputs: inputs
    try:
        yield
    finally:
        del layer.forward


def _model_inputs(
    prompts: Sequence[Mapping[str, Tensor]], token_ids_BT: Tensor, mask_BT: Tensor, *, pad_id: int
) -> dict[str, Any]:
    """Left-padded prompts [B, P] joined to right-padded responses [B, T]; pixels one image after the other."""
    inputs: dict[str, Any] = {}
    for name in dict.fromkeys(name for prompt in prompts for name in prompt):
        if name not in _SEQUENCE_INPUTS:
            inputs[name] = _join(name, [prompt[name] for prompt in prompts if name in prompt])
    responses = {"input_ids": token_ids_BT.masked_fill(~mask_BT, pad_id), "attention_mask": mask_BT.long()}
    for name in _SEQUENCE_INPUTS:
        if any(name in prompt for prompt in prompts):
            rows = [
                prompt[name][0] if name in prompt else torch.zeros_like(prompt["input_ids"][0]) for prompt in prompts
            ]
            prompt_BP = _stack(rows, fill=pad_id if name == "input_ids" else 0, left=True)
            response_BT = responses.get(name, torch.zeros_like(token_ids_BT))
            inputs[name] = torch.cat([prompt_BP, response_BT.to(prompt_BP.dtype)], dim=1)
    assert "attention_mask" in inputs, "without an attention mask, left padding shifts the logits"
    return {**inputs, "logits_to_keep": token_ids_BT.shape[1] + 1}


def _picture(example: Example) -> PIL.Image | None:
    return None if example.image is None else open_image(example.image, where=f"example {example.example_id}")


def _encode(processor: Any, text: str, picture: PIL.Image | None) -> dict[str, Tensor]:
    return encode_prompt(processor, chat_prompt(processor, text, image=picture is not None), picture)


def _check_response(target: Target, vocab_size: int, processor: Any) -> None:
    if len(target.token_ids) == 0 or target.token_ids.max() >= vocab_size:
        raise DistillError(
            f"row {target.target_id}: response ids {target.token_ids[:8].tolist()} do not fit a student of vocabulary "
            f"{vocab_size:,}; distil into the model family the cache was made with"
        )
    image_ids = image_token_ids(processor, None)
    if image_ids.intersection(target.token_ids.tolist()):
        raise DistillError(f"row {target.target_id}: the response holds an image token; leave the row out of the cache")


def _pad_id(processor: Any) -> int:
    """Any ordinary id does, since padding is masked; many tokenizers of the LLaVA family name none."""
    tokenizer = processor.tokenizer
    return tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id or 0


def _stack(rows: Sequence[Tensor], *, fill: float, left: bool = False) -> Tensor:
    """Pad every dimension to the longest and stack; on the left only for one-dimensional rows."""
    sizes = [max(row.shape[axis] for row in rows) for axis in range(rows[0].dim())]
    return torch.stack([pad(row, _padding(row, sizes, left), value=fill) for row in rows])


def _padding(row: Tensor, sizes: Sequence[int], left: bool) -> list[int]:
    amounts = []  # torch.nn.functional.pad counts from the last dimension
    for axis in reversed(range(row.dim())):
        missing = sizes[axis] - row.shape[axis]
        amounts += [missing, 0] if left else [0, missing]
    return amounts


def _join(name: str, parts: Sequence[Tensor]) -> Tensor:
    if len({part.shape[1:] for part in parts}) > 1:
        shapes = sorted({tuple(part.shape) for part in parts})
        raise DistillError(
            f"{name} of the batch's images have shapes {shapes} and cannot be joined; resize the images alike"
        )
    return torch.cat(list(parts))
