"""Stage two: the student is distilled on cached targets.

    loss = alpha * sum of KL over forget / forget tokens  +  beta * sum of KL over retain / retain tokens

Both means run over one optimizer step: all its micro-batches, all processes. transformers.Trainer carries the loop; its
own token counting is replaced (one number cannot carry two roles, and it drops tokens where there are no labels).
Checkpoints hold weights, optimizer and random state, and a rerun continues from the newest complete one. Weights may be
sharded by FSDP2 (see `sharding`); other wrappings such as DeepSpeed's are not supported.
"""

from __future__ import annotations

import math
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from threading import Thread
from typing import Any

import torch
from torch import Tensor
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

from vgid.cache.schema import Target
from vgid.data.chat import load_processor
from vgid.data.examples import Example
from vgid.errors import DistillError, Stopped, VgidError
from vgid.stage2_distill.batches import (
    Batch,
    TeacherPrompt,
    TrainItem,
    build_items,
    collate,
    last_hidden_states,
    response_logits,
)
from vgid.stage2_distill.checkpoints import Checkpoint, discard_torn, newest_checkpoint, seal_checkpoint
from vgid.stage2_distill.export import check_saveable, save_student
from vgid.stage2_distill.lineage import check_same_run, read_finished, run_identity
from vgid.stage2_distill.loss_kernels import LossAndValues, SparseTargets, dense_loss, fused_head_loss, logits_loss
from vgid.stage2_distill.losses import role_counts, role_sums
from vgid.stage2_distill.records import DistillResult, Observation, Progress, StepLoss, Watch
from vgid.stage2_distill.schedule import Schedule
from vgid.stage2_distill.settings import DistillSettings
from vgid.stage2_distill.sharding import (
    activation_checkpointing_asked,
    check_sharded,
    set_up_sharding,
    sharding_asked,
    whole_model,
)
from vgid.stage2_distill.student import check_plain_head, language_layers, load_base, load_student, vocabulary_size


def distill(
    *,
    student: str | Path,
    examples: Mapping[str, Example],
    targets: Sequence[Target],
    settings: DistillSettings,
    out: Path,
    provenance: Mapping[str, Any],
    processor: Any = None,
    teacher_prompt: Callable[[TrainItem], TeacherPrompt] | None = None,
    progress: Progress = lambda loss, num_steps: None,
    watch: Watch | None = None,
    trackers: Sequence[str] = (),
    loader_workers: int = 0,
    should_stop: Callable[[], bool] = lambda: False,
) -> DistillResult:
    """Train a student on cached targets and save it to `out`.

    A rerun over a finished `out` does nothing and returns the stored result; an interrupted run continues from the
    newest complete checkpoint beside `out`. One that is asked to stop writes one first, with or without `save_steps`.

    Args:
        student: Directory or Hugging Face id of the base.
        examples: By `example_id`.
        targets: The cache's rows, selected or not.
        settings: Stage two's part of the recipe.
        out: Directory of the new model; appears when complete.
        provenance: What the result depends on beside settings and student: manifest hash, data hash, …
        processor: The student's; None loads it.
        teacher_prompt: What the teacher is asked about a row; needed, and used, only with `settings.online`.
        progress: Called after every step.
        watch: Looks at the student every `settings.watch.every_steps` steps; needed, and used, only with that.
        trackers: That are told of every step, by the names transformers has for them (`tensorboard`, `wandb`, …).
        loader_workers: Processes that make the next batches while a step is computed; 0 makes them in between.
        should_stop: Asked when the model is loaded and after every step but the last, which leaves nothing but saving.

    Raises:
        DistillError: cache, data and student do not fit together, the loss is not finite, or `out` is of another run.
        Stopped: `should_stop` said so, in any process; a checkpoint holds all steps so far.
    """
    identity = run_identity(str(student), settings=settings, provenance=provenance)
    work = out.with_name(f".{out.name}.checkpoints")
    finished = read_finished(out)
    if finished is not None:
        check_same_run(finished["identity"], asked=identity, where=out)
        shutil.rmtree(work, ignore_errors=True)  # a kill may have come between saving and cleaning up
        return DistillResult.from_json(finished["result"])
    processor = processor if processor is not None else load_processor(student)
    selected = build_items(examples, targets, settings.targets)
    arguments = _training_arguments(settings, work, trackers=trackers, loader_workers=loader_workers)
    if sharding_asked() and (settings.train_vision or settings.train_projector):
        _check_pictures_everywhere(selected.items)
    # Random state is kept by process, and sharded weights in another form: a checkpoint fits its own launch alone.
    launch = {
        "processes": arguments.world_size,
        "fsdp": sharding_asked(),
        "device": arguments.device.type,
    }
    checkpoint = newest_checkpoint(work, identity={**identity, "launch": launch})

    schedule = Schedule(selected.items, settings=settings, num_processes=arguments.world_size)
    arguments.max_steps, arguments.per_device_train_batch_size = schedule.num_steps, schedule.micro_batch
    # An adapter is loaded onto its base by Trainer; full weights are read again here (see `_load_from_checkpoint`).
    source = student if checkpoint is None or settings.lora is not None else checkpoint.path
    model = load_student(str(source), settings=settings)
    check_saveable(model)
    if settings.fused_head:
        check_plain_head(model)
    loop = None
    if settings.online:
        assert teacher_prompt is not None
        loop = TeacherInTheLoop(
            base=None if settings.lora else load_base(str(student), settings=settings), prompt=teacher_prompt
        )
    started = time.monotonic()
    trainer = _train(
        model,
        schedule=schedule,
        processor=processor,
        settings=settings,
        arguments=arguments,
        checkpoint=checkpoint,
        identity={**identity, "launch": launch},
        progress=progress,
        should_stop=should_stop,
        work=work,
        loop=loop,
        watch=watch,
    )
    losses = trainer.losses
    result = DistillResult(
        num_steps=len(losses),
        num_rows=schedule.num_rows,
        num_tokens={role: sum(getattr(loss, f"{role}_tokens") for loss in losses) for role in schedule.num_rows},
        num_truncated=selected.num_truncated,
        losses=losses,
        seconds=time.monotonic() - started,
        seconds_waiting=trainer.seconds_waiting,
    )
    trained = whole_model(model, trainer.accelerator, load=lambda: load_student(str(student), settings=settings))
    if arguments.process_index == 0:
        save_student(
            trained,
            processor=processor,
            out=out,
            base=Path(student).name if Path(student).is_dir() else str(student),
            identity=identity,
            result=asdict(result),
            export=settings.export,
        )
        shutil.rmtree(work, ignore_errors=True)
    return result


def _train(
    model: Any,
    *,
    schedule: Schedule,
    processor: Any,
    settings: DistillSettings,
    arguments: TrainingArguments,
    checkpoint: Checkpoint | None,
    identity: Mapping[str, Any],
    progress: Progress,
    should_stop: Callable[[], bool],
    work: Path,
    loop: TeacherInTheLoop | None,
    watch: Watch | None,
) -> DistillTrainer:
    prompt = loop.prompt if loop else None
    collator = partial(collate, processor=processor, vocab_size=vocabulary_size(model), teacher_prompt=prompt)
    use_cache = getattr(model.config, "use_cache", None)
    try:
        trainer = DistillTrainer(
            model=model,
            args=arguments,
            train_dataset=schedule,
            data_collator=collator,
            settings=settings,
            should_stop=should_stop,
            loop=loop,
            watch=watch,
        )
    except RuntimeError as error:
        if arguments.report_to and "to be installed" in str(error):  # all that tells it from other errors
            raise DistillError(f"tracker {' or '.join(arguments.report_to)} is not installed: {error}") from error
        raise
    set_up_sharding(trainer.accelerator, layers=language_layers(model))
    trainer.losses += [StepLoss.from_json(loss) for loss in checkpoint.history] if checkpoint else []
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(_EachStep(trainer, schedule.num_steps, identity, progress))
    trainer.accelerator.wait_for_everyone()  # every process has found the same checkpoint
    if arguments.process_index == 0:
        discard_torn(work, whole=checkpoint)
    try:
        if checkpoint is not None and settings.watch is not None:
            trainer.load(checkpoint)
            trainer.observe()  # a stop may have come while it was looked at
        # Enough was seen if a kill came between the last step and saving.
        if not trainer.has_seen_enough and not trainer.asked_to_stop():
            trainer.train(resume_from_checkpoint=str(checkpoint.path) if checkpoint else None)
    except torch.OutOfMemoryError as error:
        raise DistillError(
            f"the GPU's memory is full ({str(error).split('. ')[0]}); raise distill.gradient_accumulation_steps (now "
            f"{settings.gradient_accumulation_steps}, so {schedule.micro_batch} rows at once), or set "
            "distill.gradient_checkpointing, distill.fused_head or distill.method=lora; smaller pictures help as well"
        ) from error
    finally:
        _remove_if_empty(work)
    if len(trainer.losses) < schedule.num_steps and not trainer.has_seen_enough:
        raise Stopped(f"stopped after {len(trainer.losses):,} of {schedule.num_steps:,} steps; rerun to continue")
    # Trainer switches the key-value cache off in the configuration, which would be saved with the student.
    if use_cache is not None:
        model.config.use_cache = use_cache
    elif hasattr(model.config, "use_cache"):
        del model.config.use_cache
    trainer.accelerator.wait_for_everyone()
    return trainer


@dataclass(frozen=True, slots=True, kw_only=True)
class TeacherInTheLoop:
    """A teacher that answers during training."""

    prompt: Callable[[TrainItem], TeacherPrompt]
    base: Any
    """A frozen copy of the base; None where the student is the base with its adapters switched off."""


class DistillTrainer(Trainer):
    """`Trainer` with this module's loss, normalised per role over the whole optimizer step."""

    def __init__(
        self,
        *,
        settings: DistillSettings,
        should_stop: Callable[[], bool],
        loop: TeacherInTheLoop | None = None,
        watch: Watch | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        # Both say that the loss is normalised already; releases before 5.19 know the first alone, and without it divide
        # the loss of models that take no such argument (Qwen2.5-VL, Qwen3-VL) by the number of micro-batches.
        self.model_accepts_loss_kwargs = self.loss_is_scaled_for_ga = True
        self._should_stop = should_stop
        self.losses: list[StepLoss] = []
        self.seconds_waiting = 0.0
        self._settings, self._loop, self._watch = settings, loop, watch
        if loop is not None and loop.base is not None:
            loop.base.to(self.args.device)
        self._coefficients = torch.tensor([settings.alpha, settings.beta], dtype=torch.float64)
        self._counts = self._sums = torch.zeros(2)

    def get_train_dataloader(self) -> Any:
        """Trainer's; its processes outlive a signal to the whole job, for the step in progress still needs them."""
        loader = super().get_train_dataloader()
        # accelerate's wrapper would take the attribute for itself.
        getattr(loader, "base_dataloader", loader).worker_init_fn = _leave_signals_to_the_parent
        return loader

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], Tensor]:
        """Draw the micro-batches of one optimizer step and count its response tokens: int64 [2], forget and retain."""
        started = time.monotonic()
        try:
            batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        except VgidError as error:  # from a worker it comes with the worker's traceback around it
            *_, said = str(error).strip().splitlines()
            raise type(error)(said.removeprefix(f"{type(error).__module__}.{type(error).__qualname__}: ")) from None
        self.seconds_waiting += time.monotonic() - started
        counts = torch.zeros(2, dtype=torch.int64, device=device)
        for batch in batches:
            counts += role_counts(batch["mask_BT"], forget_B=batch["forget_B"]).to(device)
        self._counts = self._over_processes(counts)
        self._sums = torch.zeros(2, dtype=torch.float64, device=device)
        return batches, self._counts

    def compute_loss(  # type: ignore[override]
        self, model: Any, inputs: Batch, return_outputs: bool = False, num_items_in_batch: Tensor | None = None
    ) -> Tensor:
        """This micro-batch's share of the step's loss."""
        assert num_items_in_batch is not None and not return_outputs
        forget_B, weight_B = inputs["forget_B"], inputs["weight_B"].double()
        share = self._coefficients.to(weight_B) / num_items_in_batch.clamp(min=1).to(weight_B)
        # Processes average their gradients; the counts already run over all of them.
        factor_B = weight_B * torch.where(forget_B, share[0], share[1]) * self.accelerator.num_processes
        loss, values_BT = self._loss(model, inputs, factor_B)
        self._sums += role_sums(values_BT, weight_B=weight_B, forget_B=forget_B)
        return loss

    def _loss(self, model: Any, batch: Batch, factor_B: Tensor) -> LossAndValues:
        settings = self._settings
        if self._loop is not None:
            teacher_BLV = self._teacher_logits(model, batch, base=self._loop.base)
            student_BLV = response_logits(model, batch)
            return dense_loss(student_BLV, teacher_BLV, batch["mask_BT"], weight_B=factor_B, loss=settings.loss)
        targets = SparseTargets(*(batch[name] for name in SparseTargets._fields))
        if settings.fused_head:
            head = self.accelerator.unwrap_model(model).get_output_embeddings()
            hidden_BLD = last_hidden_states(model, batch, head=head)
            return fused_head_loss(hidden_BLD, head, targets, weight_B=factor_B, loss=settings.loss)
        return logits_loss(response_logits(model, batch), targets, weight_B=factor_B, loss=settings.loss)

    @torch.no_grad()
    def _teacher_logits(self, model: Any, batch: Batch, *, base: Any) -> Tensor:
        if base is not None:
            return response_logits(base, batch, as_teacher=True)
        student = self.accelerator.unwrap_model(model)
        with student.disable_adapter():
            return response_logits(student, batch, as_teacher=True)

    def finish_step(self) -> None:
        """Record the losses of the step that is about to be applied.

        Raises:
            DistillError: they are not finite.
        """
        counts = self._counts.tolist()
        sums = self._over_processes(self._sums).tolist()
        forget, retain = (total / max(count, 1) for total, count in zip(sums, counts, strict=True))
        alpha, beta = self._coefficients.tolist()
        step, loss = self.state.global_step + 1, alpha * forget + beta * retain
        if not math.isfinite(forget + retain):
            raise DistillError(
                f"step {step}: the loss is not finite (forget {forget}, retain {retain}); lower learning_rate"
            )
        self.losses.append(
            StepLoss(
                step=step,
                loss=loss,
                forget=forget,
                retain=retain if counts[1] else None,
                forget_tokens=counts[0],
                retain_tokens=counts[1],
            )
        )

    def asked_to_stop(self) -> bool:
        """Whether any process was asked to; all of them get the same answer, so none waits for one that has left."""
        return self._in_any_process(self._should_stop())

    def observe(self) -> None:
        """Look at the student where it is time to; all processes learn whether it is good enough to end here."""
        settings, last = self._settings.watch, self.losses[-1]
        if settings is None or last.step % settings.every_steps or last.observed is not None:
            return
        assert self._watch is not None
        found: Observation | None = Observation(metrics=[], is_enough=False)
        if self.accelerator.is_main_process:
            student = self.accelerator.unwrap_model(self.model)
            student.eval()
            try:
                found = self._watch(student, last.step)
            except Stopped:  # what was seen by then is not all of it
                found = None
            student.train()
        is_enough = self._in_any_process(found is not None and found.is_enough)
        if found is not None:
            self.losses[-1] = replace(last, observed=replace(found, is_enough=is_enough))
            if self.args.report_to and found.metrics:
                # What `eval_` begins, trackers show apart from the losses. Of whole splits, or there are hundreds.
                whole = [row for row in found.metrics if row["task"] is None]
                self.log({f"eval_{row['split']}_{row['metric']}": row["value"] for row in whole})

    @property
    def has_seen_enough(self) -> bool:
        """Whether the last look at the student ends the training."""
        observed = self.losses[-1].observed if self.losses else None
        return observed is not None and observed.is_enough

    def load(self, checkpoint: Checkpoint) -> None:
        """Take the weights of a checkpoint, where the model was not read from it (see below)."""
        self._load_from_checkpoint(str(checkpoint.path))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        # transformers 5.19 saves Qwen2-VL and LLaVA under their published weight names but loads by module name and not
        # strictly: every key is missing, a warning is logged, and training goes on from the base's weights.
        if hasattr(self.model, "peft_config"):
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _over_processes(self, values: Tensor) -> Tensor:
        total = self.accelerator.reduce(values, "sum")
        assert isinstance(total, Tensor)
        return total

    def _in_any_process(self, flag: bool) -> bool:
        return bool(self._over_processes(torch.tensor(int(flag), device=self.args.device)) > 0)

    def floating_point_ops(self, inputs: Any) -> int:
        """Not estimated."""
        return 0


class _EachStep(TrainerCallback):
    def __init__(
        self, trainer: DistillTrainer, num_steps: int, identity: Mapping[str, Any], progress: Progress
    ) -> None:
        self._trainer, self._num_steps, self._identity, self._progress = trainer, num_steps, identity, progress

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        check_sharded(self._trainer.model, self._trainer.accelerator)

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._trainer.finish_step()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        loss = self._trainer.losses[-1]
        self._progress(loss, self._num_steps)
        if args.report_to:
            told = {"loss": loss.loss, "forget": loss.forget, "forget_tokens": loss.forget_tokens}
            told |= {} if loss.retain is None else {"retain": loss.retain, "retain_tokens": loss.retain_tokens}
            self._trainer.log({**told, "learning_rate": kwargs["optimizer"].param_groups[0]["lr"]})
        self._trainer.observe()
        if self._trainer.has_seen_enough:
            control.should_training_stop = True
        elif state.global_step < self._num_steps and self._trainer.asked_to_stop():
            control.should_save = control.should_training_stop = True

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._trainer.accelerator.wait_for_everyone()  # each process writes its own random state
        if state.is_world_process_zero:
            path = Path(args.output_dir) / f"checkpoint-{state.global_step}"
            seal_checkpoint(path, identity=self._identity, history=[asdict(loss) for loss in self._trainer.losses])
        self._trainer.accelerator.wait_for_everyone()  # the first process to leave may take the others with it


def _leave_signals_to_the_parent(worker: int) -> None:
    """A worker ends when its parent tells it to, and not when a batch system tells the whole job to."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if not hasattr(signal, "sigwaitinfo"):  # not on macOS, where no batch system is either
        return
    parent = os.getppid()
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})  # from here on only the thread takes it

    def end_with_the_parent() -> None:
        while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
            pass
        os._exit(0)

    Thread(target=end_with_the_parent, daemon=True).start()


def _training_arguments(
    settings: DistillSettings, work: Path, *, trackers: Sequence[str], loader_workers: int
) -> TrainingArguments:
    if unknown := set(trackers) - set(INTEGRATION_TO_CALLBACK):
        known = ", ".join(sorted(INTEGRATION_TO_CALLBACK))
        raise DistillError(f"tracker {min(unknown)!r} is unknown; choose from {known}")
    warms_up = settings.lr_scheduler == "constant" and settings.warmup_ratio > 0
    arguments = TrainingArguments(
        output_dir=str(work),
        seed=settings.seed,
        learning_rate=settings.learning_rate,
        lr_scheduler_type="constant_with_warmup" if warms_up else settings.lr_scheduler,
        warmup_steps=settings.warmup_ratio,
        weight_decay=settings.weight_decay,
        max_grad_norm=settings.max_grad_norm,
        gradient_accumulation_steps=settings.gradient_accumulation_steps,
        gradient_checkpointing=settings.gradient_checkpointing,
        gradient_checkpointing_kwargs={"use_reentrant": False} if settings.gradient_checkpointing else None,
        optim="adamw_torch",
        train_sampling_strategy="sequential",
        remove_unused_columns=False,
        # A row without a picture leaves the vision tower out; every other weight has a part in every row.
        ddp_find_unused_parameters=settings.train_vision or settings.train_projector,
        ddp_timeout=24 * 60 * 60,  # the others wait while one process evaluates
        dataloader_num_workers=loader_workers,
        dataloader_pin_memory=torch.cuda.is_available(),
        logging_strategy="no",
        save_strategy="steps" if settings.save_steps else "no",
        save_steps=settings.save_steps or 1,
        save_total_limit=2,
        report_to=list(trackers) or "none",
        disable_tqdm=True,
    )
    if arguments.mixed_precision != "no":  # accelerate's launcher says so through the environment
        raise DistillError(
            f"accelerate was launched with mixed_precision {arguments.mixed_precision}, but the recipe decides: "
            f"distill.dtype is {settings.dtype}; launch with --mixed_precision no"
        )
    for name in ("fused_head", "online", "watch"):
        if sharding_asked() and getattr(settings, name):  # they use weights outside of the forward that gathers them
            raise DistillError(f"distill.{name} does not work on sharded weights; leave it out or launch without FSDP")
    if sharding_asked() and settings.gradient_checkpointing and activation_checkpointing_asked():
        raise DistillError("distill.gradient_checkpointing and FSDP's activation checkpointing are one thing; keep one")
    launched = int(os.environ.get("WORLD_SIZE", "1"))
    beyond = "train_vision" if settings.train_vision else "train_projector" if settings.train_projector else ""
    if launched > 1 and settings.fused_head and settings.lora is None and beyond:
        raise DistillError(f"distill.fused_head with distill.{beyond} trains in one process only; leave one out")
    if launched != arguments.world_size and not sharding_asked():
        raise DistillError(
            f"this is one of {launched} processes, but accelerate sees {arguments.world_size}; launch with --cpu on a "
            "machine without GPUs, or each would train the whole student"
        )
    # One process uses one device: Trainer would otherwise wrap the model in DataParallel on a node with several GPUs.
    arguments._n_gpu = min(arguments.n_gpu, 1)  # pyright: ignore[reportPrivateUsage]  # Trainer itself does this
    return arguments


def _check_pictures_everywhere(items: Sequence[TrainItem]) -> None:
    """Refuse to shard a learning vision tower for rows that do not all use it: processes would wait for each other."""
    if without := sum(item.example.image is None for item in items):
        raise DistillError(
            f"{without:,} of {len(items):,} rows have no picture; with FSDP a vision tower or projector learns only "
            "from rows that all have one; select those alone, leave train_vision and train_projector out, or launch "
            "without FSDP"
        )


def _remove_if_empty(directory: Path) -> None:
    """Trainer makes its output directory whether or not there will be checkpoints."""
    with suppress(OSError):
        directory.rmdir()
