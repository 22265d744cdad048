"""What a recipe says about stage two. Everything here changes the student; paths and limits are flags, not settings.

Facts that decide a result (loss weights, learning rate, length, batch, seed, and which cached rows train) have no
defaults: the recipe states them.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from vgid.cache.schema import Target
from vgid.data.examples import Example
from vgid.data.strict import Seed, Strict

Role = Literal["forget", "retain"]
Draws = Literal["all", "cycle"]
Export = Literal["merged", "adapter"]


def _default_role(data: dict[str, Any]) -> Role:
    return "forget" if data.get("split") == "forget" else "retain"


def _default_lora(data: dict[str, Any]) -> LoraSettings | None:
    return LoraSettings() if data.get("method") == "lora" else None


class TargetSelection(Strict):
    """Which cached rows train, and in which term of the loss."""

    split: str
    """Split of the rows: `forget`, `retain`, …"""
    view: Literal["base", "noise", "icu", "noise+icu"]
    """What the teacher saw."""
    response_kind: Literal["generated", "reference"]
    """`generated`: the teacher's own answer; `reference`: the data set's answer, forced."""
    role: Role = Field(default_factory=_default_role)
    """Which weight applies, `alpha` (forget) or `beta` (retain). Default: forget for the split of that name."""
    weight: float = Field(default=1.0, gt=0)
    """Factor on the loss of these rows; 1 changes nothing. How often they are drawn does not depend on it."""
    tasks: tuple[str, ...] | None = None
    """Only rows of these tasks; None takes every task."""
    modality: Literal["image", "text"] | None = None
    """Only rows of this modality; None takes both."""
    truncated: bool = False
    """Also responses that were cut at the teacher's token limit; they teach what to say but not where to end."""

    def matches(self, target: Target) -> bool:
        """Whether a cached row is selected."""
        return self.matches_kind(target, view=target.view, response_kind=target.response_kind)

    def matches_kind(self, asked: Target | Example, *, view: str, response_kind: str) -> bool:
        """Whether a row is selected that answers this question, or would."""
        wanted = (self.split, self.view, self.response_kind, self.modality or asked.modality)
        found = (asked.split, view, response_kind, asked.modality)
        return wanted == found and (self.tasks is None or asked.task in self.tasks)

    def describe(self) -> str:
        """The selection as `key=value` words, for messages."""
        said = self.model_dump(include={"split", "view", "response_kind", "tasks", "modality"}, exclude_none=True)
        return " ".join(f"{key}={value}" for key, value in said.items())


class LoraSettings(Strict):
    """Low-rank adapters."""

    r: int = Field(default=16, ge=1)
    """Rank of every adapter."""
    alpha: float = Field(default=16.0, gt=0)
    """The adapter's output is scaled by alpha / r."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Dropout on the adapter's input; 0 is off. Every process draws its own, so that with dropout a training in several
    processes is not the one in a single process."""
    target_modules: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    """Names of the linear layers of the language model that get an adapter, matched by their last component. In the
    vision tower and the projector, if they learn, every linear layer gets one."""


class LossSettings(Strict):
    """How far a student is from its teacher at one position.

    The teacher is known by its stored candidates and by the mass of everything else, the tail, which counts as one
    more outcome.
    """

    divergence: Literal["forward_kl", "reverse_kl", "jsd", "topk_conditional_kl"] = "forward_kl"
    """`forward_kl`: KL(teacher || student), the paper's. `reverse_kl`: KL(student || teacher), which would rather drop
    answers than spread over them. `jsd`: the mean of both distances from the midpoint. `topk_conditional_kl`: forward
    KL among the stored candidates alone; it says nothing of the tail, and is the only one with a temperature."""
    temperature: float | None = Field(default=None, gt=0)
    """Softens both sides of `topk_conditional_kl`. The others compare distributions as they are: how much mass a
    softened tail would hold cannot be known from its sum."""

    @model_validator(mode="after")
    def _check(self) -> LossSettings:
        if (self.divergence == "topk_conditional_kl") != (self.temperature is not None):
            raise ValueError(
                f"divergence {self.divergence!r} and temperature {self.temperature} do not fit together: a temperature "
                "belongs to topk_conditional_kl, which needs one, and to no other"
            )
        return self


class Condition(Strict):
    """That a metric has come to a value, as an evaluation names metrics and what they are of."""

    metric: str
    """`leak`, `rouge_l_f1`, `refusal`, `accuracy`, `prefill_leak`, …"""
    split: str
    """Of the questions."""
    task: str | None = None
    """Only questions of this task."""
    modality: str | None = None
    """Only questions of this modality; needs `task`."""
    photo: str | None = None
    """Only questions with such photos (`heldout`: not in the base's training); needs `phrasing` and the above."""
    phrasing: str | None = None
    """Only questions in such words; needs all of the above."""
    at_most: float | None = None
    """Met when the value is this or less. Give this or `at_least`."""
    at_least: float | None = None
    """Met when the value is this or more. Give this or `at_most`."""

    @model_validator(mode="after")
    def _check(self) -> Condition:
        if (self.at_most is None) == (self.at_least is None):
            raise ValueError("give exactly one of at_most and at_least")
        return self

    def is_met(self, value: float) -> bool:
        """Whether a value of the metric is enough."""
        return value <= self.at_most if self.at_most is not None else value >= (self.at_least or 0)

    def describe(self) -> str:
        """The condition in words, for messages."""
        where = " ".join(filter(None, (self.split, self.task, self.modality, self.photo, self.phrasing)))
        bound = f"at most {self.at_most}" if self.at_most is not None else f"at least {self.at_least}"
        return f"{self.metric} of {where} {bound}"


class WatchSettings(Strict):
    """Questions asked of the student while it learns, by the code that evaluates it afterwards."""

    every_steps: int = Field(ge=1)
    """Optimizer steps between two times."""
    per_cell: int = Field(default=1, ge=1)
    """Most questions per subject, task, modality, photo and phrasing."""
    stop_when: tuple[Condition, ...] = ()
    """The training ends when all of these are met at once; empty only watches. Ask what is not trained on (other words,
    other photos, a retain split as well), or it ends when the training rows are learned."""


class DistillSettings(Strict):
    """The training of one student."""

    targets: tuple[TargetSelection, ...] = Field(min_length=1)
    """Which cached rows train. Every selection must match something, and no row may match two."""
    alpha: float = Field(ge=0)
    """Weight of the forget term, in nats per response token; 0 leaves it out."""
    beta: float = Field(ge=0)
    """Weight of the retain term, in nats per response token; 0 leaves it out."""
    loss: LossSettings = LossSettings()
    """Which divergence; forward KL unless said otherwise."""
    fused_head: bool = False
    """Compute the loss from the last hidden states, a few positions at a time, so that the logits of a batch are never
    all in memory: for long responses and large vocabularies. Changes the update by rounding only."""
    online: bool = False
    """Compute the teacher's distributions anew in every step, over the whole vocabulary, for the responses that the
    cache holds: a reference to measure the cache against, slower and with more memory. The stored ones are not used."""
    learning_rate: float = Field(gt=0)
    """Peak learning rate of AdamW."""
    epochs: float | None = Field(default=None, gt=0)
    """Passes over the forget rows, see `draws` (retain rows cycle at their own pace). Give this or `max_steps`."""
    max_steps: int | None = Field(default=None, ge=1)
    """Optimizer steps. Give this or `epochs`."""
    forget_batch: int = Field(ge=1)
    """Forget rows in every optimizer step, over all processes and micro-batches."""
    retain_batch: int = Field(ge=0)
    """Retain rows in every optimizer step, over all processes and micro-batches; 0 trains without a retain term."""
    draws: Draws = "all"
    """What an epoch is where an example has several cached rows (draws of the noise, samples, response kinds). `all`:
    each of them once, so that their gradients are averaged, and an example counts as often as it has rows. `cycle`: one
    of them, the next in the next epoch, so that every example counts once. `weight` of a selection holds in both."""
    seed: Seed
    """Keys the order of the rows and the initial adapters."""
    gradient_accumulation_steps: int = Field(default=1, ge=1)
    """Micro-batches per optimizer step: divides the rows of a step to save memory, does not change the update."""
    warmup_ratio: float = Field(default=0.0, ge=0, lt=1)
    """Share of the steps in which the learning rate rises from 0; 0 is off."""
    lr_scheduler: Literal["constant", "linear", "cosine"] = "cosine"
    """Shape of the learning rate after warm-up; `linear` and `cosine` fall to 0."""
    weight_decay: float = Field(default=0.0, ge=0)
    """AdamW's decoupled weight decay; 0 is off."""
    max_grad_norm: float = Field(default=1.0, ge=0)
    """Gradients are scaled down to this L2 norm; 0 is off."""
    dtype: Literal["float32", "bfloat16", "float64"] = "float32"
    """Type of the weights and of the arithmetic, and of the saved student. In bfloat16 an update below 1/256 of a
    weight is rounded away: use it with LoRA, whose adapters stay in float32 and are merged by random rounding, which
    keeps small updates on average. float64 is for tests."""
    method: Literal["full", "lora"] = "full"
    """Train all weights, or low-rank adapters."""
    lora: LoraSettings | None = Field(default_factory=_default_lora)
    """Adapter settings; only with `method: lora`."""
    export: Export = "merged"
    """What is saved: a whole model, or with `method: lora` the adapter alone (`vgid merge` makes a model of it)."""
    train_vision: bool = False
    """Whether the vision tower learns too, its projector aside."""
    train_projector: bool = False
    """Whether the module between vision tower and language model learns too (Qwen-VL: the mergers). Off, every picture
    reaches the student's language model as it reached the base's."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more time."""
    watch: WatchSettings | None = None
    """Evaluate during the training, and end it early; None does neither."""
    save_steps: int = Field(default=0, ge=0)
    """Optimizer steps between checkpoints from which an interrupted run continues; 0 writes none."""

    @model_validator(mode="after")
    def _check(self) -> DistillSettings:
        if (self.epochs is None) == (self.max_steps is None):
            raise ValueError("give exactly one of epochs and max_steps")
        if (self.method == "lora") != (self.lora is not None):
            raise ValueError(f"method {self.method!r} and lora settings {self.lora} do not fit together")
        if self.online and self.fused_head:
            raise ValueError("online needs all logits of the teacher, so it cannot be combined with fused_head")
        if self.export == "adapter" and self.lora is None:
            raise ValueError("export 'adapter' needs method 'lora'; full training leaves no adapter")
        for role, batch in (("forget", self.forget_batch), ("retain", self.retain_batch)):
            selected = any(target.role == role for target in self.targets)
            if selected != (batch > 0):
                raise ValueError(
                    f"{role}_batch is {batch} but targets select {'some' if selected else 'no'} {role} rows"
                )
        return self
