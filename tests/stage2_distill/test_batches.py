"""Which rows train, and where their tokens and predictions stand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from distill_cases import (
    SELECTIONS,
    Oracle,
    build_sharp_qwen2_vl,
    make_example,
    make_examples,
    portrait,
    tail_of,
    target_of,
)
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from sparse_teachers import plain_loss, summed_kl
from synthetic_targets import narrowed, shifted

from vgid.cache.schema import Target
from vgid.data.examples import Example
from vgid.errors import DistillError
from vgid.stage1_teacher.engines.protocol import TeacherRequest
from vgid.stage1_teacher.engines.transformers import TransformersTeacher
from vgid.stage1_teacher.icu import TEMPLATES, with_instruction
from vgid.stage2_distill.batches import Batch, TrainItem, build_candidates, build_items, collate, response_logits
from vgid.stage2_distill.loss_kernels import SparseTargets
from vgid.stage2_distill.settings import TargetSelection

SAID = tuple(TargetSelection.model_validate(selection) for selection in SELECTIONS)


def items_of(
    examples: Mapping[str, Example], targets: Sequence[Target], said: Sequence[TargetSelection] = SAID
) -> tuple[TrainItem, ...]:
    return build_items(examples, targets, said).items


def batch_of(oracle: Oracle, items: Sequence[TrainItem]) -> Batch:
    return collate(items, processor=oracle.processor, vocab_size=oracle.model.get_output_embeddings().weight.shape[0])


@torch.inference_mode()
def nats_per_token(oracle: Oracle, batch: Batch, *, model: Any = None) -> float:
    return float(summed_kl(response_logits(model or oracle.model, batch), batch) / batch["mask_BT"].sum())


# --- alignment ---


@pytest.mark.parametrize("family", ["qwen", "llava"])
def test_targets_from_the_students_own_logits_cost_nothing_and_shifted_ones_do(
    family: str, request: pytest.FixtureRequest, examples: dict[str, Example]
) -> None:
    oracle: Oracle = request.getfixturevalue(family)
    items = items_of(examples, [oracle.target(example, length=6) for example in examples.values()])
    assert nats_per_token(oracle, batch_of(oracle, items)) < 1e-5
    for by in (-1, 1):
        late = [replace(item, target=shifted(item.target, by)) for item in items]
        assert nats_per_token(oracle, batch_of(oracle, late)) > 0.5


def test_rows_align_though_the_teachers_prompt_has_another_length(tmp_path: Any, examples: dict[str, Example]) -> None:
    """A real teacher under an ICU instruction and noise, a student on the plain question and the clean image.

    Attention is cut, so that a prediction depends on the token before it alone and both must agree, but only where each
    distribution stands at its own token.
    """
    oracle = without_attention(Oracle(build_sharp_qwen2_vl(tmp_path / "model", seed=3)))
    engine = TransformersTeacher(oracle.path, num_topk=20)
    noise = Image.effect_noise((84, 56), 80).convert("RGB")
    requests = [
        TeacherRequest(
            request_id=example.example_id,
            text=with_instruction(example.question, TEMPLATES["generic-v1"]),
            image=noise if example.modality == "image" else None,
            forced_token_ids=tuple(oracle.target(example, length=6).token_ids.tolist()),
        )
        for example in examples.values()
    ]
    targets = []
    for response in engine.run(requests):
        row = oracle.target(examples[response.request_id], length=6)
        prompt, _ = split_prompt(batch_of(oracle, items_of(examples, [row], [_said_for(row)])))
        assert len(response.prompt_token_ids) > len(prompt) + 10
        stored = {name: getattr(response, name) for name in ("topk_ids", "topk_logprobs", "token_logprob")}
        tail = tail_of(response.topk_logprobs.astype(np.float64)).astype(np.float32)
        targets.append(replace(row, **stored, tail_logprob=tail))
    items = items_of(examples, targets)
    assert nats_per_token(oracle, batch_of(oracle, items)) < 1e-5
    for by in (-1, 1):
        late = [replace(item, target=shifted(item.target, by)) for item in items]
        assert nats_per_token(oracle, batch_of(oracle, late)) > 0.5


def _said_for(row: Target) -> TargetSelection:
    return TargetSelection.model_validate(
        {"split": row.split, "view": row.view, "response_kind": row.response_kind, "modality": row.modality}
    )


def without_attention(oracle: Oracle) -> Oracle:
    with torch.no_grad():
        for name, parameter in oracle.model.named_parameters():
            if name.endswith("self_attn.o_proj.weight"):
                parameter.zero_()
    oracle.model.save_pretrained(oracle.path)
    return oracle


def split_prompt(batch: Batch) -> tuple[list[int], list[int]]:
    """Ids of the first row's prompt and response, padding removed."""
    ids, mask = batch["inputs"]["input_ids"][0], batch["inputs"]["attention_mask"][0].bool()
    width = len(ids) - batch["token_ids_BT"].shape[1]
    return ids[:width][mask[:width]].tolist(), ids[width:][mask[width:]].tolist()


def test_stored_ids_enter_the_sequence_as_they_are(qwen: Oracle) -> None:
    """Ids that decode and encode to something else would betray a re-tokenised response."""
    example = make_example(0, split="retain", image=True)
    letters = qwen.processor.tokenizer("dentist", add_special_tokens=False)["input_ids"]
    spelled = [qwen.processor.tokenizer.convert_tokens_to_ids(letter) for letter in "dentist"]
    assert letters != spelled
    row = qwen.target(example, length=7)
    items = items_of({example.example_id: example}, [replace(row, token_ids=np.array(spelled, np.int32))], SAID[2:])
    # The distributions belong to other tokens now, so each own token is one more candidate.
    _, response = split_prompt(batch_of(qwen, items))
    assert response == spelled


@pytest.mark.parametrize("family", ["qwen", "llava"])
def test_a_padded_mixed_batch_predicts_what_single_rows_predict(
    family: str, request: pytest.FixtureRequest, examples: dict[str, Example]
) -> None:
    oracle: Oracle = request.getfixturevalue(family)
    items = items_of(examples, oracle.targets(examples))
    batch = batch_of(oracle, items)
    assert {item.target.modality for item in items} == {"image", "text"}
    assert len({len(item.target.token_ids) for item in items}) > 2
    with torch.inference_mode():
        logits = response_logits(oracle.model, batch)
    for row, item in enumerate(items):
        alone = oracle.logits(item.example, item.target.token_ids.tolist())
        torch.testing.assert_close(logits[row, : len(alone)], alone, rtol=0, atol=1e-5)


def test_text_only_rows_need_no_image_in_the_batch(qwen: Oracle) -> None:
    examples = {f"retain/{i}": make_example(i, split="retain", image=False) for i in range(4)}
    batch = batch_of(qwen, items_of(examples, qwen.targets(examples), SAID[2:]))
    assert "pixel_values" not in batch["inputs"]
    assert nats_per_token(qwen, batch) < 1e-5


def test_without_the_attention_mask_predictions_move(qwen: Oracle, examples: dict[str, Example]) -> None:
    """Why the mask may never be missing."""
    batch = batch_of(qwen, items_of(examples, qwen.targets(examples)))
    batch["inputs"]["attention_mask"] = torch.ones_like(batch["inputs"]["attention_mask"])
    assert nats_per_token(qwen, batch) > 0.01


# --- candidates ---


def test_a_response_token_outside_the_stored_candidates_leaves_the_tail(qwen: Oracle) -> None:
    example = make_example(1, split="retain", image=False)
    row = qwen.target(example, num_topk=2, length=8)
    outside = ~(row.topk_ids == row.token_ids[:, None]).any(-1)
    assert outside.any()
    found = build_candidates(row, vocab_size=400)
    np.testing.assert_array_equal(found.ids[outside, 2], row.token_ids[outside])
    np.testing.assert_allclose(found.logprobs[outside, 2], row.token_logprob[outside])
    np.testing.assert_allclose(
        np.exp(found.tail), np.exp(row.tail_logprob) - np.where(outside, np.exp(row.token_logprob), 0), atol=1e-7
    )
    np.testing.assert_allclose(np.exp(found.logprobs).sum(-1) + np.exp(found.tail), 1, atol=1e-6)


def test_a_response_token_among_the_candidates_is_not_counted_twice(qwen: Oracle) -> None:
    row = qwen.target(make_example(1, split="retain", image=False), num_topk=400, length=4)
    found = build_candidates(row, vocab_size=400)
    assert found.ids.shape == row.topk_ids.shape
    np.testing.assert_array_equal(found.tail, row.tail_logprob.astype(np.float64))


@given(vocab_size=st.integers(200, 400), num_topk=st.integers(1, 400))
def test_ids_the_student_lacks_go_into_the_tail(qwen: Oracle, vocab_size: int, num_topk: int) -> None:
    row = qwen.target(make_example(1, split="retain", image=False), num_topk=num_topk, length=3)
    found = build_candidates(row, vocab_size=vocab_size)
    assert found.ids.max() < vocab_size
    np.testing.assert_allclose(np.exp(found.logprobs).sum(-1) + np.exp(found.tail), 1, atol=1e-5)


@given(data=st.data())
def test_the_loss_of_a_row_of_several_widths_is_that_of_the_partition_it_names(
    qwen: Oracle, data: st.DataObject
) -> None:
    """Against a dense teacher and student in float64: kept ids, the response token, and one bucket for all others."""
    size, num_tokens = 12, data.draw(st.integers(1, 4))
    vocab_size = data.draw(st.integers(8, size))  # the student's
    widths = data.draw(st.lists(st.integers(0, 6), min_size=num_tokens, max_size=num_tokens))
    own = data.draw(st.lists(st.integers(0, vocab_size - 1), min_size=num_tokens, max_size=num_tokens))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    teacher = rng.dirichlet(np.full(size, 0.5), num_tokens)
    student_logits = rng.normal(0, 3, (num_tokens, vocab_size))
    student = np.exp(student_logits) / np.exp(student_logits).sum(-1, keepdims=True)

    whole = target_of(
        torch.from_numpy(np.log(teacher)),
        np.array(own, np.int32),
        make_example(1, split="retain", image=False),
        num_topk=6,
    )
    found = build_candidates(narrowed(whole, widths), vocab_size=vocab_size)
    ids, logprobs, tail = (torch.from_numpy(each)[None] for each in (found.ids, found.logprobs, found.tail))
    stored = SparseTargets(ids, logprobs, tail, torch.ones(1, num_tokens, dtype=torch.bool))
    loss = plain_loss(torch.from_numpy(student_logits)[None], stored).loss

    expected = 0.0
    for p, q, width, token in zip(teacher, student, widths, own, strict=True):
        named = sorted({*np.argsort(-p)[:width], token} & {*range(vocab_size)})
        p, q = np.append(p[named], 1 - p[named].sum()), np.append(q[named], 1 - q[named].sum())
        expected += (p * np.log(p / q)).sum()
    assert float(loss) == pytest.approx(expected, abs=2e-5)


def test_a_batch_of_several_widths_from_the_students_own_logits_costs_nothing(
    qwen: Oracle, examples: dict[str, Example]
) -> None:
    rows = [qwen.target(example, length=6) for example in examples.values()]
    rng = np.random.default_rng(0)
    rows = [narrowed(row, rng.integers(0, 20, 6).tolist()) if index % 2 else row for index, row in enumerate(rows)]
    batch = batch_of(qwen, items_of(examples, rows))
    absent = torch.isneginf(batch["topk_logprobs_BTK"])
    assert absent.any() and (batch["topk_ids_BTK"][absent] == 0).all()
    assert nats_per_token(qwen, batch) < 1e-5


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda row: {"topk_ids": np.where(row.topk_ids == row.topk_ids[:, :1], -1, row.topk_ids)}, "an id below 0"),
        (lambda row: {"topk_ids": np.zeros_like(row.topk_ids)}, "stores one id twice"),
        (lambda row: {"topk_logprobs": row.topk_logprobs - 1}, "sum to"),
        (lambda row: {"tail_logprob": np.zeros_like(row.tail_logprob)}, "sum to"),
        (lambda row: {"topk_logprobs": np.full_like(row.topk_logprobs, np.nan)}, "sum to nan"),
    ],
)
def test_a_damaged_distribution_is_refused(qwen: Oracle, damage: Any, message: str) -> None:
    row = qwen.target(make_example(1, split="retain", image=False))
    with pytest.raises(DistillError, match=message):
        build_candidates(replace(row, **damage(row)), vocab_size=400)


def test_an_id_stored_twice_is_found_beside_positions_that_store_fewer(qwen: Oracle) -> None:
    row = narrowed(qwen.target(make_example(1, split="retain", image=False), length=3), [4, 20, 1])
    row.topk_ids[0, 1] = row.topk_ids[0, 0]
    with pytest.raises(DistillError, match="stores one id twice"):
        build_candidates(row, vocab_size=400)


def test_a_response_that_does_not_fit_the_student_is_refused(qwen: Oracle) -> None:
    example = make_example(1, split="retain", image=False)
    (item,) = items_of({example.example_id: example}, [qwen.target(example)], SAID[2:])
    with pytest.raises(DistillError, match="vocabulary 5"):
        collate([item], processor=qwen.processor, vocab_size=5)
    pad = qwen.processor.image_token_id
    stray = replace(item, target=replace(item.target, token_ids=np.full_like(item.target.token_ids, pad)))
    with pytest.raises(DistillError, match="image token"):
        batch_of(qwen, [stray])


# --- selection ---


def test_only_selected_rows_train_with_their_role_and_weight(
    examples: dict[str, Example], targets: list[Target]
) -> None:
    said = TargetSelection(split="retain", view="base", response_kind="reference", modality="text", weight=0.5)
    items = items_of(examples, targets, [said])
    assert {item.example.modality for item in items} == {"text"}
    assert {(item.role, item.weight) for item in items} == {("retain", 0.5)}
    assert len(items) == sum(row.split == "retain" and row.modality == "text" for row in targets)


def test_the_order_of_the_cache_does_not_matter(examples: dict[str, Example], targets: list[Target]) -> None:
    assert items_of(examples, targets) == items_of(examples, targets[::-1])


def test_a_selection_that_matches_nothing_names_what_the_cache_holds(
    examples: dict[str, Example], targets: list[Target]
) -> None:
    said = TargetSelection(split="forget", view="noise", response_kind="generated")
    with pytest.raises(
        DistillError, match=r"view=noise .*the cache has .*forget noise\+icu generated image facts \(3\)"
    ):
        build_items(examples, targets, [*SAID, said])
    unknown_task = TargetSelection(split="retain", view="base", response_kind="reference", tasks=("perception",))
    with pytest.raises(DistillError, match="perception"):
        build_items(examples, targets, [unknown_task])


def test_a_row_selected_twice_is_refused(examples: dict[str, Example], targets: list[Target]) -> None:
    twice = TargetSelection(split="retain", view="base", response_kind="reference", modality="text", weight=2.0)
    with pytest.raises(DistillError, match="selected twice"):
        build_items(examples, targets, [*SAID, twice])


def test_truncated_rows_are_counted_and_left_out(examples: dict[str, Example], targets: list[Target]) -> None:
    cut = [replace(row, finish_reason="length") if row.split == "forget" else row for row in targets[2:]]
    selected = build_items(examples, targets[:2] + cut, SAID)
    assert selected.num_truncated == 4
    assert sum(item.role == "forget" for item in selected.items) == 2
    with pytest.raises(DistillError, match="all 4 selected rows are truncated"):
        build_items(examples, [row for row in cut if row.split == "forget"], SAID[:2])


def test_a_row_without_its_example_is_refused(examples: dict[str, Example], targets: list[Target]) -> None:
    fewer = {name: example for name, example in examples.items() if name != "forget/2"}
    with pytest.raises(DistillError, match="'forget/2' is not in the data"):
        build_items(fewer, targets, SAID)


def test_an_example_of_another_world_is_refused(examples: dict[str, Example], targets: list[Target]) -> None:
    other = {**examples, "forget/2": replace(examples["forget/2"], image=portrait(99))}
    with pytest.raises(DistillError, match="another image than the teacher saw"):
        build_items(other, targets, SAID)


def test_examples_without_any_image_are_enough_for_text_rows(qwen: Oracle) -> None:
    examples = {name: e for name, e in make_examples(forget=4, retain=4).items() if e.modality == "text"}
    assert len(items_of(examples, qwen.targets(examples), SAID[1:])) == len(examples)
