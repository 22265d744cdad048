"""The training itself: what it minimises, that it can be repeated and continued, and what it leaves behind."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from distill_cases import SELECTIONS, Oracle, make_examples, make_settings, portrait, target_of
from safetensors.torch import load_file
from sparse_teachers import LOSSES, summed_kl
from synthetic_targets import IDENTITY, narrowed

from vgid.cache.mapped import map_targets
from vgid.cache.reader import open_cache
from vgid.cache.schema import Target
from vgid.cache.writer import CacheWriter
from vgid.data.examples import Example
from vgid.data.images import open_image
from vgid.errors import DistillError, Stopped
from vgid.stage2_distill.batches import TeacherPrompt, TrainItem, build_items, collate
from vgid.stage2_distill.records import DistillResult, Observation, StepLoss
from vgid.stage2_distill.schedule import Schedule
from vgid.stage2_distill.settings import LossSettings
from vgid.stage2_distill.trainer import distill

PROVENANCE = {"manifest_sha256": "0123"}


class Bench:
    """One student, one cache, any settings."""

    def __init__(self, oracle: Oracle, examples: dict[str, Example], targets: list[Target], directory: Path) -> None:
        self.oracle, self.examples, self.targets, self.directory = oracle, examples, targets, directory

    def run(self, name: str, *, changes: Mapping[str, Any] | None = None, **arguments: Any) -> DistillResult:
        plain: dict[str, Any] = {
            "student": self.oracle.path,
            "examples": self.examples,
            "targets": self.targets,
            "settings": make_settings(**(changes or {})),
            "out": self.directory / name,
            "provenance": PROVENANCE,
            "processor": self.oracle.processor,
        }
        return distill(**{**plain, **arguments})

    def weights(self, name: str) -> dict[str, torch.Tensor]:
        return load_file(self.directory / name / "model.safetensors")


@pytest.fixture
def bench(qwen: Oracle, examples: dict[str, Example], targets: list[Target], tmp_path: Path) -> Bench:
    return Bench(qwen, examples, targets, tmp_path)


IN_FLOAT64 = {"targets": [SELECTIONS[0], SELECTIONS[2]], "max_steps": 3, "dtype": "float64", "learning_rate": 3e-3}


@pytest.fixture
def image_bench(qwen: Oracle, teacher: Oracle, tmp_path: Path) -> Bench:
    """Images only, for exact comparisons.

    Qwen2-VL counts the positions of a batch without any image from its padding, in float32; AdamW turns that rounding
    of 1e-7 into differences of 1e-5 where a gradient is nearly 0.
    """
    examples = {name: row for name, row in make_examples(forget=8, retain=9).items() if row.modality == "image"}
    return Bench(qwen, examples, teacher.targets(examples), tmp_path)


def largest_difference(one: Mapping[str, torch.Tensor], other: Mapping[str, torch.Tensor]) -> float:
    assert one.keys() == other.keys()
    return max(float((one[name] - other[name]).abs().max()) for name in one)


# --- the objective ---


def test_the_loss_is_each_roles_mean_over_its_own_tokens_of_the_whole_step(bench: Bench) -> None:
    """Computed again row by row, without padding, for the first step of four micro-batches."""
    changes = {
        "alpha": 2.0,
        "beta": 0.5,
        "gradient_accumulation_steps": 4,
        "max_steps": 1,
        "targets": [{**SELECTIONS[0], "weight": 3.0}, *SELECTIONS[1:]],
    }
    (found,) = bench.run("out", changes=changes).losses
    settings = make_settings(**changes)
    schedule = Schedule(build_items(bench.examples, bench.targets, settings.targets).items, settings=settings)
    sums, counts = {"forget": 0.0, "retain": 0.0}, {"forget": 0, "retain": 0}
    for item in (schedule[position] for position in range(8)):
        row = collate([item], processor=bench.oracle.processor, vocab_size=400)
        logits = bench.oracle.logits(item.example, item.target.token_ids.tolist())[None]
        sums[item.role] += item.weight * float(summed_kl(logits, row))
        counts[item.role] += int(row["mask_BT"].sum())
    assert (found.forget_tokens, found.retain_tokens) == (counts["forget"], counts["retain"])
    assert found.forget == pytest.approx(sums["forget"] / counts["forget"], rel=1e-5)
    assert found.retain == pytest.approx(sums["retain"] / counts["retain"], rel=1e-5)
    assert found.loss == pytest.approx(2.0 * found.forget + 0.5 * (found.retain or 0), rel=1e-6)


def test_accumulating_micro_batches_gives_the_update_of_the_whole_batch(image_bench: Bench) -> None:
    """Responses have 1 to 8 tokens, so that means of micro-batches would differ."""
    whole = image_bench.run("whole", changes=IN_FLOAT64)
    for parts in (2, 4):
        split = image_bench.run(f"split{parts}", changes={**IN_FLOAT64, "gradient_accumulation_steps": parts})
        assert split.num_tokens == whole.num_tokens
        assert largest_difference(image_bench.weights("whole"), image_bench.weights(f"split{parts}")) < 1e-10


def test_a_role_of_weight_zero_pulls_nothing(bench: Bench) -> None:
    """With alpha 0, other forget targets change no weight."""
    changes = {"alpha": 0.0, "max_steps": 2}
    bench.run("one", changes=changes)
    other = bench.oracle.targets(bench.examples)
    mixed = [new if new.split == "forget" else old for new, old in zip(other, bench.targets, strict=True)]
    bench.run("other", changes=changes, targets=mixed)
    assert largest_difference(bench.weights("one"), bench.weights("other")) == 0


def test_rows_read_from_a_mapped_cache_train_to_the_same_weights(bench: Bench) -> None:
    rng = np.random.default_rng(0)
    rows = [narrowed(row, rng.integers(1, 20, len(row.token_ids)).tolist()) for row in bench.targets[::2]]
    rows += bench.targets[1::2]
    with CacheWriter(bench.directory / "cache", **IDENTITY, rows_per_part=3) as writer:
        for row in rows:
            writer.add(row)
    mapped = map_targets(open_cache(bench.directory / "cache"))

    one, two = bench.run("one", targets=rows), bench.run("two", targets=mapped)

    assert one.losses == two.losses
    assert largest_difference(bench.weights("one"), bench.weights("two")) == 0


def test_forget_rows_alone_train_without_a_retain_term(bench: Bench) -> None:
    result = bench.run("out", changes={"targets": SELECTIONS[:2], "retain_batch": 0})
    assert [loss.retain for loss in result.losses] == [None] * 3
    assert result.num_rows == {"forget": 6, "retain": 0}


# --- what changes ---


@pytest.mark.parametrize("method", ["full", "lora"])
def test_training_lowers_both_losses_and_changes_only_what_may_change(method: str, bench: Bench) -> None:
    changes = {"method": method, "max_steps": 20, "learning_rate": 3e-3}
    losses = bench.run("out", changes=changes).losses
    assert losses[-1].forget < 0.6 * losses[0].forget
    assert (losses[-1].retain or 0) < 0.6 * (losses[0].retain or 0)
    before, after = load_file(bench.oracle.path / "model.safetensors"), bench.weights("out")
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    projections = {name for name in before if name.endswith("_proj.weight") and "visual" not in name}
    language = {name for name in before if "visual" not in name}
    assert changed == (projections if method == "lora" else language)


def test_the_vision_tower_learns_if_asked(bench: Bench) -> None:
    bench.run("out", changes={"train_vision": True})
    before, after = load_file(bench.oracle.path / "model.safetensors"), bench.weights("out")
    assert all(
        not torch.equal(before[name], after[name]) for name in before if "visual.blocks" in name and "mlp" in name
    )


def test_gradient_checkpointing_changes_memory_not_the_update(bench: Bench) -> None:
    bench.run("plain", changes={"dtype": "float64"})
    bench.run("checkpointed", changes={"dtype": "float64", "gradient_checkpointing": True})
    assert largest_difference(bench.weights("plain"), bench.weights("checkpointed")) < 1e-12


@pytest.mark.parametrize("method", ["full", "lora"])
def test_the_fused_head_changes_memory_not_the_update(method: str, bench: Bench) -> None:
    """The output layer of this model is its embedding as well, which trains in the full form."""
    changes = {"dtype": "float64", "method": method}
    plain = bench.run("plain", changes=changes)
    fused = bench.run("fused", changes={**changes, "fused_head": True})
    assert fused.losses[-1].loss == pytest.approx(plain.losses[-1].loss, rel=1e-12)
    assert largest_difference(bench.weights("plain"), bench.weights("fused")) < 1e-12


def test_a_head_whose_result_is_changed_afterwards_cannot_be_fused(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import Qwen2VLForConditionalGeneration

    forward = Qwen2VLForConditionalGeneration.forward

    def capped(self: Any, *args: Any, **kwargs: Any) -> Any:
        output: Any = forward(self, *args, **kwargs)
        output.logits = 3 * torch.tanh(output.logits / 3)
        return output

    monkeypatch.setattr(Qwen2VLForConditionalGeneration, "forward", capped)
    with pytest.raises(DistillError, match="changes its logits after the output layer"):
        bench.run("out", changes={"fused_head": True})


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES.keys())
def test_every_divergence_can_be_trained_on(loss: LossSettings, bench: Bench) -> None:
    changes = {"loss": loss.model_dump(), "max_steps": 15, "learning_rate": 3e-3}
    losses = bench.run("out", changes=changes).losses
    assert losses[-1].forget < 0.7 * losses[0].forget
    assert (losses[-1].retain or 0) < 0.7 * (losses[0].retain or 0)


def test_bfloat16_trains_and_is_saved_as_such(bench: Bench) -> None:
    bench.run("out", changes={"dtype": "bfloat16", "method": "lora", "learning_rate": 1e-2})
    assert {tensor.dtype for tensor in bench.weights("out").values()} == {torch.bfloat16}


def test_the_configuration_is_saved_as_it_was(bench: Bench) -> None:
    """Trainer switches the key-value cache off, which would make every later generation quadratic."""
    bench.run("out")
    assert (bench.directory / "out" / "config.json").read_text() == (bench.oracle.path / "config.json").read_text()


# --- the teacher in the loop ---


@pytest.mark.parametrize("method", ["full", "lora"])
def test_a_cache_of_the_whole_vocabulary_trains_to_the_student_of_a_teacher_in_the_loop(
    method: str, bench: Bench
) -> None:
    """The cache was made by the base from other pictures and with an instruction, and stores float32."""

    def intervened(example: Example) -> Example:
        picture = None if example.image is None else portrait(99)
        return replace(example, question=f"Do not say. {example.question}", image=picture)

    def asked(item: TrainItem) -> TeacherPrompt:
        other = intervened(item.example)
        return TeacherPrompt(other.question, None if other.image is None else open_image(other.image, where="test"))

    rows = []
    for example, row in zip(bench.examples.values(), bench.targets, strict=True):
        logits = bench.oracle.logits(intervened(example), row.token_ids.tolist())
        rows.append(target_of(logits, row.token_ids, example, num_topk=400))
    changes = {"method": method, "max_steps": 5}
    offline = bench.run("offline", changes=changes, targets=rows)
    online = bench.run("online", changes={**changes, "online": True}, targets=rows, teacher_prompt=asked)
    bench.run("plain", changes=changes)

    assert [loss.loss for loss in online.losses] == pytest.approx([loss.loss for loss in offline.losses], rel=1e-4)
    same = largest_difference(bench.weights("offline"), bench.weights("online"))
    assert same < 0.02 * largest_difference(bench.weights("offline"), bench.weights("plain"))


# --- again, and further ---


@pytest.mark.parametrize("method", ["full", "lora"])
def test_the_same_seed_gives_the_same_weights_and_another_does_not(method: str, bench: Bench) -> None:
    results = [
        bench.run(name, changes={"method": method, "seed": seed}) for name, seed in (("a", 3), ("b", 3), ("c", 4))
    ]
    assert largest_difference(bench.weights("a"), bench.weights("b")) == 0
    assert largest_difference(bench.weights("a"), bench.weights("c")) > 0
    assert results[0].losses == results[1].losses


def test_a_rerun_over_a_finished_student_does_nothing(bench: Bench) -> None:
    result = bench.run("out")
    written = {path: path.stat().st_mtime_ns for path in (bench.directory / "out").iterdir()}

    def never(loss: StepLoss, num_steps: int) -> None:
        raise AssertionError

    assert bench.run("out", progress=never) == result
    assert written == {path: path.stat().st_mtime_ns for path in (bench.directory / "out").iterdir()}


def test_another_run_over_a_finished_student_is_refused(bench: Bench) -> None:
    bench.run("out")
    with pytest.raises(DistillError, match="manifest_sha256 is '0123' there and '4567' now"):
        bench.run("out", provenance={"manifest_sha256": "4567"})
    with pytest.raises(DistillError, match=r"learning_rate is 0\.001 there and 0\.002 now"):
        bench.run("out", changes={"learning_rate": 2e-3})


@pytest.mark.parametrize(("method", "torn"), [("full", True), ("lora", False)])
def test_an_interrupted_run_continues_to_the_same_student(method: str, torn: bool, bench: Bench) -> None:
    changes: dict[str, Any] = {"max_steps": 6, "save_steps": 2, "method": method, "gradient_accumulation_steps": 2}
    if method == "lora":
        changes["lora"] = {"dropout": 0.1}  # random state has to be restored as well
    whole = bench.run("whole", changes=changes)

    def stop_after_five(loss: StepLoss, num_steps: int) -> None:
        if loss.step == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        bench.run("resumed", changes=changes, progress=stop_after_five)
    assert not (bench.directory / "resumed").exists()
    checkpoints = bench.directory / ".resumed.checkpoints"
    if torn:
        (checkpoints / "checkpoint-4" / "optimizer.pt").write_bytes(b"")

    seen: list[int] = []
    resumed = bench.run("resumed", changes=changes, progress=lambda loss, num_steps: seen.append(loss.step))
    assert seen == ([3, 4, 5, 6] if torn else [5, 6])
    assert resumed.losses == whole.losses
    assert largest_difference(bench.weights("whole"), bench.weights("resumed")) == 0
    assert not checkpoints.exists()


def test_batches_that_other_processes_make_train_the_same_student(bench: Bench) -> None:
    changes = {"method": "lora", "lora": {"dropout": 0.1}, "gradient_accumulation_steps": 2}
    alone = bench.run("alone", changes=changes)
    helped = bench.run("helped", changes=changes, loader_workers=2)
    assert helped.losses == alone.losses
    assert largest_difference(bench.weights("alone"), bench.weights("helped")) == 0
    assert 0 < alone.seconds_waiting < alone.seconds


# --- looking at the student while it learns ---


def rows_of(value: float) -> list[dict[str, Any]]:
    """A split's, and one of its tasks."""
    whole = {"metric": "leak", "model": "student", "split": "forget", "task": None, "value": value}
    return [whole, {**whole, "task": "facts", "value": 0.9}]


def test_a_student_that_is_good_enough_is_saved_as_it_then_is(bench: Bench) -> None:
    """Looking changes nothing, so the student that ends early is the other's checkpoint of that step."""
    changes = {"max_steps": 6, "watch": {"every_steps": 2}, "lr_scheduler": "constant"}
    looked: list[int] = []

    def until_four(model: Any, step: int) -> Observation:
        assert not model.training
        looked.append(step)
        return Observation(metrics=rows_of(1 / step), is_enough=step == 4)

    early = bench.run("early", changes=changes, watch=until_four)
    short = bench.run("short", changes={**changes, "max_steps": 4, "watch": None})

    assert looked == [2, 4]
    assert early.num_steps == 4
    assert [loss.observed and loss.observed.metrics[0]["value"] for loss in early.losses] == [None, 0.5, None, 0.25]
    assert largest_difference(bench.weights("early"), bench.weights("short")) == 0
    assert [loss.loss for loss in early.losses] == [loss.loss for loss in short.losses]
    assert bench.run("early", changes=changes) == early


@pytest.mark.parametrize("method", ["full", "lora"])
def test_a_kill_after_the_last_look_does_not_train_on(
    method: str, bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = {"max_steps": 6, "method": method, "watch": {"every_steps": 2}, "save_steps": 2}

    def at_once(model: Any, step: int) -> Observation:
        return Observation(metrics=rows_of(0.0), is_enough=True)

    whole = bench.run("whole", changes=changes, watch=at_once)
    with monkeypatch.context() as patch:
        patch.setattr("vgid.stage2_distill.trainer.save_student", interrupt)
        with pytest.raises(KeyboardInterrupt):
            bench.run("resumed", changes=changes, watch=at_once)
    resumed = bench.run("resumed", changes=changes, watch=at_once)
    assert resumed.losses == whole.losses
    assert largest_difference(bench.weights("whole"), bench.weights("resumed")) == 0


def test_a_look_that_is_interrupted_is_taken_after_the_resume(bench: Bench) -> None:
    changes = {"max_steps": 4, "method": "lora", "lora": {"dropout": 0.1}, "watch": {"every_steps": 2}}
    looked: list[int] = []

    def at_two(model: Any, step: int) -> Observation:
        looked.append(step)
        return Observation(metrics=rows_of(float(model.get_output_embeddings().weight.sum())), is_enough=step == 2)

    def interrupted(model: Any, step: int) -> Observation:
        raise Stopped("asked to")

    whole = bench.run("whole", changes=changes, watch=at_two)
    told: list[int] = []
    with pytest.raises(Stopped, match="stopped after 2 of 4 steps"):
        bench.run(
            "resumed",
            changes=changes,
            watch=interrupted,
            progress=lambda loss, num_steps: told.append(loss.step),
            should_stop=lambda: told == [1, 2],
        )
    resumed = bench.run("resumed", changes=changes, watch=at_two)
    assert looked == [2, 2]
    assert resumed.losses == whole.losses and resumed.num_steps == 2
    assert largest_difference(bench.weights("whole"), bench.weights("resumed")) == 0


def interrupt(*arguments: Any, **named: Any) -> None:
    raise KeyboardInterrupt


# --- what is reported and refused ---


def test_progress_and_result_tell_the_same_story(bench: Bench, capfd: pytest.CaptureFixture[str]) -> None:
    told: list[tuple[StepLoss, int]] = []
    cut = [replace(row, finish_reason="length") if row.example_id == "forget/1" else row for row in bench.targets]
    result = bench.run("out", targets=cut, progress=lambda loss, num_steps: told.append((loss, num_steps)))
    assert told == [(loss, 3) for loss in result.losses]
    assert [loss.step for loss in result.losses] == [1, 2, 3]
    assert (result.num_steps, result.num_truncated, result.num_rows) == (3, 1, {"forget": 5, "retain": 7})
    assert result.num_tokens["forget"] == sum(loss.forget_tokens for loss in result.losses)
    assert result.seconds > 0
    assert capfd.readouterr().out == ""


def test_a_tracker_is_told_of_every_step_and_look(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    def look(model: Any, step: int) -> Observation:
        return Observation(metrics=rows_of(1 / step), is_enough=False)

    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(bench.directory / "board"))
    result = bench.run("out", trackers=["tensorboard"], changes={"watch": {"every_steps": 2}}, watch=look)

    (file,) = (bench.directory / "board").glob("events.*")
    told = told_to_tensorboard(file)
    for name in ("loss", "forget", "retain"):
        expected = {loss.step: pytest.approx(getattr(loss, name), rel=1e-6) for loss in result.losses}
        assert told[f"train/{name}"] == expected
    assert set(told["train/learning_rate"]) == {1, 2, 3}
    assert {tag: values for tag, values in told.items() if tag.startswith("eval/")} == {"eval/forget_leak": {2: 0.5}}
    assert not (bench.directory / ".out.checkpoints").exists()


def told_to_tensorboard(file: Path) -> dict[str, dict[int, float]]:
    """By tag and step, of its own file: records of a length, its checksum, an event and its checksum."""
    from tensorboardX.proto import event_pb2

    content, place, told = file.read_bytes(), 0, dict[str, dict[int, float]]()
    while place < len(content):
        (length,) = struct.unpack_from("<Q", content, place)
        event = event_pb2.Event.FromString(  # pyright: ignore[reportAttributeAccessIssue]  # made at run time
            content[place + 12 : place + 12 + length]
        )
        for value in event.summary.value:
            told.setdefault(value.tag, {})[event.step] = value.simple_value
        place += 16 + length
    return told


@pytest.mark.parametrize(
    ("tracker", "message"),
    [("tensorbored", "tracker 'tensorbored' is unknown; choose from"), ("wandb", "not installed")],
)
def test_a_tracker_that_is_not_there_is_refused_before_training(tracker: str, message: str, bench: Bench) -> None:
    with pytest.raises(DistillError, match=message):
        bench.run("out", trackers=[tracker])
    assert not (bench.directory / "out").exists()


def test_a_row_that_another_process_cannot_prepare_is_one_line(bench: Bench) -> None:
    torn = [replace(row, tail_logprob=row.tail_logprob + 1) for row in bench.targets]
    messages = []
    for workers in (0, 1):
        with pytest.raises(DistillError, match="probabilities sum to") as caught:
            bench.run("out", targets=torn, loader_workers=workers)
        messages.append(str(caught.value))
    assert messages[0] == messages[1] and "\n" not in messages[0]


def test_a_full_gpu_is_one_line_that_says_what_saves_memory(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: Any, **named: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has …")

    monkeypatch.setattr("vgid.stage2_distill.trainer.logits_loss", full)
    with pytest.raises(DistillError, match=r"memory is full \(CUDA out of memory\); .*\(now 1, so 8 rows at once\)"):
        bench.run("out")
    assert list(bench.directory.iterdir()) == []


def test_how_often_a_checkpoint_is_written_does_not_make_another_run(bench: Bench) -> None:
    assert bench.run("out") == bench.run("out", changes={"save_steps": 1})


@pytest.mark.parametrize(
    ("changes", "environment", "message"),
    [
        ({"gradient_checkpointing": True}, {"FSDP_ACTIVATION_CHECKPOINTING": "true"}, "are one thing; keep one"),
        ({"train_vision": True}, {}, "6 of 13 rows have no picture; with FSDP"),
    ],
)
def test_what_cannot_be_sharded_is_refused_before_the_model_is_loaded(
    bench: Bench, changes: dict[str, Any], environment: dict[str, str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"ACCELERATE_USE_FSDP": "true", **environment}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(DistillError, match=message):
        bench.run("out", changes=changes)


def test_a_loss_that_is_not_finite_stops_the_run_and_leaves_nothing(bench: Bench) -> None:
    with pytest.raises(DistillError, match=r"step 2: the loss is not finite .* lower learning_rate"):
        bench.run(
            "out", changes={"learning_rate": 1e30, "max_grad_norm": 0, "max_steps": 5, "lr_scheduler": "constant"}
        )
    assert list(bench.directory.iterdir()) == []


def test_a_launcher_that_asks_for_other_arithmetic_than_the_recipe_is_refused(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    with pytest.raises(DistillError, match=r"mixed_precision bf16, but the recipe decides: distill.dtype is float32"):
        bench.run("out")


def test_processes_that_would_each_train_alone_are_refused(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """As `accelerate launch` starts them on a machine without GPUs unless it is told `--cpu`."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(DistillError, match="one of 2 processes, but accelerate sees 1; launch with --cpu"):
        bench.run("out")


def test_sharding_asked_for_in_one_process_is_refused(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """It would train in one piece without a word."""
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("FSDP_VERSION", "2")
    with pytest.raises(
        DistillError, match="FSDP2 was asked for, but accelerate's distributed type is NO; give it GPUs"
    ):
        bench.run("out")
    with pytest.raises(DistillError, match=r"distill.fused_head does not work on sharded weights"):
        bench.run("out", changes={"fused_head": True})


def test_a_directory_of_something_else_is_not_touched(bench: Bench) -> None:
    (bench.directory / "out").mkdir()
    (bench.directory / "out" / "thesis.txt").write_text("…")
    with pytest.raises(DistillError, match="choose another directory"):
        bench.run("out")
    assert (bench.directory / "out" / "thesis.txt").read_text() == "…"
