"""Stage one: plan -> perturb -> ICU prompt -> engine -> top-k -> cache.

Rows that the cache already holds are not asked for again, so a rerun is a no-op and an interrupted run continues.
Finished rows are committed part by part; what was in flight at a crash is computed again.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from itertools import groupby
from typing import Any

import numpy as np
from PIL import Image as PIL

from vgid.cache.schema import Target
from vgid.cache.writer import CacheWriter
from vgid.data.images import open_image
from vgid.data.spans import fact_mask
from vgid.errors import Stopped, TeacherError, VgidError
from vgid.stage1_teacher.background import Background
from vgid.stage1_teacher.engines import Teacher, TeacherRequest, TeacherResponse
from vgid.stage1_teacher.icu import with_instruction
from vgid.stage1_teacher.perturb import perturb
from vgid.stage1_teacher.plan import PlannedTarget
from vgid.stage1_teacher.settings import TeacherSettings
from vgid.stage1_teacher.standing import Standing, missing_rows, standing
from vgid.stage1_teacher.topk import narrow, round_to_fp16_grid, tail_logprob

_MAX_UNCOMMITTED = 1024
"""Rows that the engine may be ahead of the disk; at k = 64 and 64 tokens a row these are 34 MB."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """Where a teacher pass stands."""

    rows: int
    total_rows: int
    tokens: int
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerateResult:
    """What a teacher pass did."""

    planned: int
    already_cached: int
    erased: int
    """Planned rows that were erased from the cache and are not made again."""
    generated: int
    tokens: int
    truncated: int
    """Responses cut at `max_new_tokens`; they are stored as such and do not train unless a recipe asks for them."""
    seconds: float
    waited: float
    """Seconds of these in which the engine waited for rows to be committed."""
    whole: Standing | None = None
    """Of the whole plan, where the rows asked for were a part of it."""


def generate(
    plan: Sequence[PlannedTarget],
    *,
    settings: TeacherSettings,
    writer: CacheWriter,
    load_teacher: Callable[[], Teacher],
    processor: Any,
    end_of_turn_id: int,
    on_progress: Callable[[Progress], None] = lambda progress: None,
    should_stop: Callable[[], bool] = lambda: False,
) -> GenerateResult:
    """Compute the targets of `plan` that the cache lacks and that were not erased from it, and commit them.

    Args:
        plan: From `make_plan`, or a shard or sample of it.
        settings: Stage one's part of the recipe.
        writer: Open on the cache.
        load_teacher: Called once, and only if something is missing.
        processor: The teacher's; its tokenizer makes the ids of reference answers and the text of responses, its image
            processor says what `processor` space is.
        end_of_turn_id: Closes every reference answer.
        on_progress: Called after every row.
        should_stop: Asked before and after loading and after every row; once true, finished rows are committed and
            `Stopped` is raised.

    Raises:
        TeacherError: the engine answered short or not at all.
        Stopped: `should_stop` said so.
    """
    tokenizer = processor.tokenizer
    missing, before = missing_rows(plan, writer), standing(plan, writer, shards=1)
    counts: dict[str, Any] = {"planned": before.rows, "already_cached": before.committed, "erased": before.erased}
    if not missing:
        return GenerateResult(**counts, generated=0, tokens=0, truncated=0, seconds=0, waited=0)
    rows = tokens = truncated = 0

    def stop_if_asked() -> None:
        if should_stop():
            raise Stopped(f"stopped after {rows:,} of {len(missing):,} rows, all committed; rerun to continue")

    def commit(answered: tuple[_Prepared, TeacherResponse]) -> None:
        writer.add(_target(*answered, settings, teacher.engine_id, tokenizer))

    def remembered_requests() -> Iterator[TeacherRequest]:
        requests = requests_of(missing, settings, processor=processor, end_of_turn_id=end_of_turn_id)
        for planned, request in zip(missing, requests, strict=True):
            prepared[request.request_id] = _Prepared(planned=planned, request=request)
            yield request

    stop_if_asked()
    teacher = load_teacher()
    started, prepared = time.monotonic(), dict[str, _Prepared]()
    background = Background(commit, size=_MAX_UNCOMMITTED)
    try:
        with background:
            stop_if_asked()
            for response in teacher.run(remembered_requests()):
                background.add((prepared.pop(response.request_id), response))
                rows, tokens = rows + 1, tokens + len(response.token_ids)
                truncated += response.finish_reason == "length"
                seconds = time.monotonic() - started
                on_progress(Progress(rows=rows, total_rows=len(missing), tokens=tokens, seconds=seconds))
                stop_if_asked()
        writer.flush()
    except VgidError:
        writer.flush()  # the rows before a bad one are good; a rerun need not make them again
        raise
    finally:
        teacher.close()
    if rows != len(missing):
        raise TeacherError(f"the engine answered {rows:,} of {len(missing):,} requests; rerun to ask for the rest")
    seconds = time.monotonic() - started
    return GenerateResult(
        **counts, generated=rows, tokens=tokens, truncated=truncated, seconds=seconds, waited=background.waited
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Prepared:
    planned: PlannedTarget
    request: TeacherRequest


def requests_of(
    plan: Sequence[PlannedTarget], settings: TeacherSettings, *, processor: Any, end_of_turn_id: int
) -> Iterator[TeacherRequest]:
    """One request a target, in plan order; the plan has those on the same pixels side by side, and makes them once."""
    for _, same_pixels in groupby(plan, key=lambda planned: (planned.image_sha256, planned.is_noised, planned.draw)):
        picture: PIL.Image | None = None
        for planned in same_pixels:
            if planned.example.image is not None and picture is None:
                picture = picture_of(planned, settings, image_processor=processor.image_processor)
            yield _request(planned, picture, settings, processor.tokenizer, end_of_turn_id)


def picture_of(planned: PlannedTarget, settings: TeacherSettings, *, image_processor: Any) -> PIL.Image:
    """The pixels that the teacher sees for one target: 8-bit RGB, perturbed where its view says so.

    Raises:
        DataError: the image cannot be read.
    """
    assert planned.example.image is not None and planned.image_sha256 is not None
    picture = open_image(planned.example.image, where=f"example {planned.example.example_id}")
    noise, donor = settings.perturbation, planned.donor
    if noise is None or not planned.is_noised:
        return picture
    return perturb(
        picture,
        noise.name,
        strength=noise.strength,
        seed=settings.seed,
        image_sha256=planned.image_sha256,
        draw=planned.draw,
        space=noise.space,
        image_processor=image_processor,
        donor=None if donor is None else open_image(donor.image, where=f"picture of {donor.subject_id}"),
    )


def prompt_text(planned: PlannedTarget) -> str:
    """The user's turn: the instruction, where the view has one, and the question."""
    instruction = planned.instruction
    return with_instruction(planned.example.question, None if instruction is None else instruction.text)


def _request(
    planned: PlannedTarget,
    picture: PIL.Image | None,
    settings: TeacherSettings,
    tokenizer: Any,
    end_of_turn_id: int,
) -> TeacherRequest:
    forced = None
    if planned.response_kind == "reference":
        forced = (*answer_token_ids(tokenizer, planned.example.answer), end_of_turn_id)
    sampling = settings.sampling
    return TeacherRequest(
        request_id=planned.target_id,
        text=prompt_text(planned),
        image=picture,
        pixel_sha256=None if picture is None else sha256(picture.tobytes()).hexdigest(),
        forced_token_ids=forced,
        max_new_tokens=settings.max_new_tokens,
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        # An id differs for every sample and is spread evenly, which is all a seed needs.
        seed=int(planned.target_id[:12], 16) if sampling.temperature > 0 else None,
    )


def answer_token_ids(tokenizer: Any, answer: str) -> list[int]:
    """Ids of an assistant's answer, without special tokens."""
    return tokenizer(answer, add_special_tokens=False)["input_ids"]


def _target(
    prepared: _Prepared, response: TeacherResponse, settings: TeacherSettings, engine_id: str, tokenizer: Any
) -> Target:
    planned, example = prepared.planned, prepared.planned.example
    noise = settings.perturbation if planned.is_noised else None
    _check_response(response, settings.num_topk)
    topk_ids, topk_logprobs = response.topk_ids, response.topk_logprobs
    if settings.top_p is not None:
        topk_ids, topk_logprobs = narrow(topk_ids, topk_logprobs, top_p=settings.top_p, min_k=settings.min_k)
    prompt = f"{prepared.request.text}\n{list(response.prompt_token_ids)}"
    forced = planned.response_kind == "reference"
    return Target(
        target_id=planned.target_id,
        example_id=example.example_id,
        split=example.split,
        subject_id=example.subject_id,
        task=example.task,
        modality=example.modality,
        view=planned.view,
        perturbation=None if noise is None else noise.label,
        strength=None if noise is None else noise.strength,
        noise_seed=None if noise is None else settings.seed,
        draw=planned.draw,
        icu_id=planned.instruction.icu_id if planned.instruction else None,
        response_kind=planned.response_kind,
        sample=planned.sample,
        engine_id=engine_id,
        finish_reason=response.finish_reason,
        response_text=tokenizer.decode(response.token_ids, skip_special_tokens=True),
        image_sha256=planned.image_sha256,
        pixel_sha256=prepared.request.pixel_sha256,
        prompt_sha256=sha256(prompt.encode()).hexdigest(),
        token_ids=response.token_ids,
        token_logprob=response.token_logprob,
        token_rank=response.token_rank,
        logsumexp=response.logsumexp,
        entropy=response.entropy,
        tail_logprob=tail_logprob(topk_logprobs),
        topk_ids=topk_ids,
        topk_logprobs=round_to_fp16_grid(topk_logprobs),
        fact_mask=fact_mask(tokenizer, example.answer, example.facts, length=len(response.token_ids))
        if forced
        else None,
    )


def _check_response(response: TeacherResponse, num_topk: int) -> None:
    """What every consumer relies on; a short row would otherwise surface hours later, in training."""
    positions = len(response.token_ids)
    shapes = {response.topk_ids.shape, response.topk_logprobs.shape}
    if positions == 0 or len(shapes) != 1 or next(iter(shapes))[0] != positions or next(iter(shapes))[1] > num_topk:
        raise TeacherError(f"request {response.request_id!r}: {positions} tokens with distributions of shape {shapes}")
    mass = np.exp(response.topk_logprobs.astype(np.float64)).sum(-1)
    if not np.isfinite(mass).all() or mass.max() > 1 + 1e-3:
        raise TeacherError(f"request {response.request_id!r}: candidate probabilities sum to {mass.max():.4f}")


def pilot_of_plan(plan: Sequence[PlannedTarget], *, size: int) -> list[PlannedTarget]:
    """`size` rows spread evenly over every (split, view, response kind), for a prediction of the whole."""
    kinds: dict[tuple[str, ...], list[PlannedTarget]] = {}
    for planned in plan:
        key = (planned.example.split, planned.example.modality, planned.view, planned.response_kind)
        kinds.setdefault(key, []).append(planned)
    # Every (rank within its kind) / (size of its kind) lies in [0, 1); the smallest `size` sample all kinds alike.
    ranked = [((rank + 0.5) / len(rows), planned) for rows in kinds.values() for rank, planned in enumerate(rows)]
    chosen = {planned.target_id for _, planned in sorted(ranked, key=lambda pair: (pair[0], pair[1].target_id))[:size]}
    return [planned for planned in plan if planned.target_id in chosen]


def upper_bound_tokens(
    plan: Iterable[PlannedTarget], *, settings: TeacherSettings, tokenizer: Any
) -> Mapping[tuple[str, str, str], tuple[int, int]]:
    """Rows and most tokens by (split, view, response kind); reference answers are counted exactly."""
    totals: dict[tuple[str, str, str], tuple[int, int]] = {}
    for planned in plan:
        key = (planned.example.split, planned.view, planned.response_kind)
        reference = planned.response_kind == "reference"
        answer = planned.example.answer
        tokens = len(answer_token_ids(tokenizer, answer)) + 1 if reference else settings.max_new_tokens
        rows, total = totals.get(key, (0, 0))
        totals[key] = (rows + 1, total + tokens)
    return totals


def predicted_bytes_per_token(num_topk: int) -> float:
    """Bytes a cached token takes, from sizes measured at V = 151,936 with a bfloat16 head (docs/cache-format.md).

    A straight line through k = 20 (65 B) and k = 64 (184 B) plus 10 B for the response's own columns; a smaller
    vocabulary compresses better.
    """
    return 10 + 11 + 2.7 * num_topk
