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
from vgid.data.examples import Example
from vgid.data.images import open_image
from vgid.data.spans import fact_mask
from vgid.errors import Stopped, TeacherError, VgidError
from vgid.stage1_teacher.engines import Teacher, TeacherRequest, TeacherResponse
from vgid.stage1_teacher.icu import with_instruction
from vgid.stage1_teacher.perturb import perturb
from vgid.stage1_teacher.plan import PlannedTarget
from vgid.stage1_teacher.settings import TeacherSettings
from vgid.stage1_teacher.topk import narrow, round_to_fp16_grid, tail_logprob


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
    seconds: float


def generate(
    plan: Sequence[PlannedTarget],
    *,
    settings: TeacherSettings,
    writer: CacheWriter,
    load_teacher: Callable[[], Teacher],
    tokenizer: Any,
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
        tokenizer: The teacher's; makes the ids of reference answers and the text of responses.
        end_of_turn_id: Closes every reference answer.
        on_progress: Called after every row.
        should_stop: Asked before and after loading and after every row; once true, finished rows are committed and
            `Stopped` is raised.

    Raises:
        TeacherError: the engine answered short or not at all.
        Stopped: `should_stop` said so.
    """
    uncached = [planned for planned in plan if planned.target_id not in writer.done]
    missing = [planned for planned in uncached if not _is_erased(planned.example, writer)]
    counts = {
        "planned": len(plan),
        "already_cached": len(plan) - len(uncached),
        "erased": len(uncached) - len(missing),
    }
    if not missing:
        return GenerateResult(**counts, generated=0, tokens=0, truncated=0, seconds=0)
    rows = tokens = truncated = 0

    def stop_if_asked() -> None:
        if should_stop():
            raise Stopped(f"stopped after {rows:,} of {len(missing):,} rows, all committed; rerun to continue")

    stop_if_asked()
    teacher = load_teacher()
    started, prepared = time.monotonic(), dict[str, _Prepared]()
    try:
        stop_if_asked()
        for response in teacher.run(_requests(missing, settings, tokenizer, end_of_turn_id, prepared)):
            target = _target(prepared.pop(response.request_id), response, settings, teacher.engine_id, tokenizer)
            writer.add(target)
            rows, tokens = rows + 1, tokens + len(target.token_ids)
            truncated += target.finish_reason == "length"
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
    return GenerateResult(
        **counts, generated=rows, tokens=tokens, truncated=truncated, seconds=time.monotonic() - started
    )


def _is_erased(example: Example, writer: CacheWriter) -> bool:
    return writer.erased(subject_id=example.subject_id, example_id=example.example_id)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Prepared:
    planned: PlannedTarget
    request: TeacherRequest
    pixel_sha256: str | None


def _requests(
    plan: Iterable[PlannedTarget],
    settings: TeacherSettings,
    tokenizer: Any,
    end_of_turn_id: int,
    prepared: dict[str, _Prepared],
) -> Iterator[TeacherRequest]:
    """Requests in plan order; each picture is decoded once for its neighbours and perturbed once per draw."""
    for _, same_picture in groupby(plan, key=lambda planned: planned.image_sha256):
        pictures: dict[tuple[bool, int], PIL.Image] = {}
        for planned in same_picture:
            key = (planned.is_noised, planned.draw)
            if planned.example.image is not None and key not in pictures:
                pictures[key] = _picture(planned, settings)
            request = _request(planned, pictures.get(key), settings, tokenizer, end_of_turn_id)
            pixels = None if request.image is None else sha256(request.image.tobytes()).hexdigest()
            prepared[planned.target_id] = _Prepared(planned=planned, request=request, pixel_sha256=pixels)
            yield request


def _picture(planned: PlannedTarget, settings: TeacherSettings) -> PIL.Image:
    assert planned.example.image is not None and planned.image_sha256 is not None
    picture = open_image(planned.example.image, where=f"example {planned.example.example_id}")
    if not planned.is_noised:
        return picture
    noise = settings.perturbation
    return perturb(
        picture,
        noise.name,
        strength=noise.strength,
        seed=settings.seed,
        image_sha256=planned.image_sha256,
        draw=planned.draw,
    )


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
    return TeacherRequest(
        request_id=planned.target_id,
        text=with_instruction(planned.example.question, settings.icu if planned.is_instructed else None),
        image=picture,
        forced_token_ids=forced,
        max_new_tokens=settings.max_new_tokens,
    )


def answer_token_ids(tokenizer: Any, answer: str) -> list[int]:
    """Ids of an assistant's answer, without special tokens."""
    return tokenizer(answer, add_special_tokens=False)["input_ids"]


def _target(
    prepared: _Prepared, response: TeacherResponse, settings: TeacherSettings, engine_id: str, tokenizer: Any
) -> Target:
    planned, example, noise = prepared.planned, prepared.planned.example, settings.perturbation
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
        perturbation=noise.name if planned.is_noised else None,
        strength=noise.strength if planned.is_noised else None,
        noise_seed=settings.seed if planned.is_noised else None,
        draw=planned.draw,
        icu_id=settings.icu if planned.is_instructed else None,
        response_kind=planned.response_kind,
        sample=0,
        engine_id=engine_id,
        finish_reason=response.finish_reason,
        response_text=tokenizer.decode(response.token_ids.tolist(), skip_special_tokens=True),
        image_sha256=planned.image_sha256,
        pixel_sha256=prepared.pixel_sha256,
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
