"""Weights spread over processes by FSDP2, which accelerate does where its launcher is told to.

Asked for with `accelerate launch --use_fsdp --fsdp_version 2 … -m vgid distill …`: how many GPUs share the weights does
not change the student, so it is no setting. Where accelerate cannot shard (on CPUs, with one process) it does plain
data parallelism without a word; here what was asked for must be what runs. Checkpoints and the student are saved whole:
the first process gathers them and needs the memory of the host for all weights twice.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

from accelerate import Accelerator
from torch.distributed.tensor import DTensor

from vgid.errors import DistillError

_ADVICE = "give it GPUs, at least two processes and fsdp_version 2, or launch without FSDP"


def sharding_asked() -> bool:
    """Whether the launcher was told to use FSDP."""
    return os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"


def activation_checkpointing_asked() -> bool:
    """Whether the launcher was told to let FSDP recompute activations."""
    return os.environ.get("FSDP_ACTIVATION_CHECKPOINTING", "false").lower() == "true"


def set_up_sharding(accelerator: Accelerator, *, layers: Sequence[str]) -> None:
    """If FSDP was asked for, see that it runs, in version 2, by layers of the language model, and saves whole weights.

    accelerate would gather the vision tower layer by layer too, and a process whose rows have no picture never gets
    there while the others wait for it. So the tower is gathered with what belongs to no layer, by all alike.

    Args:
        accelerator: What will prepare the model.
        layers: Class names of the language model's layers.

    Raises:
        DistillError: naming what was asked for and what runs.
    """
    if (runs := accelerator.distributed_type.value) in ("DEEPSPEED", "MEGATRON_LM"):
        raise DistillError(f"accelerate was launched with {runs}, which vgid does not support; use FSDP2 instead")
    if not sharding_asked():
        return
    plugin: Any = getattr(accelerator.state, "fsdp_plugin", None)  # there only if accelerate shards
    if not accelerator.is_fsdp2:
        version = f" in version {plugin.fsdp_version}" if plugin else ""
        raise DistillError(f"FSDP2 was asked for, but accelerate's distributed type is {runs}{version}; {_ADVICE}")
    plugin.state_dict_config = plugin.optim_state_dict_config = None  # accelerate would keep those of its default type
    plugin.set_state_dict_type("FULL_STATE_DICT")
    plugin.transformer_cls_names_to_wrap = list(layers)


def check_sharded(model: Any, accelerator: Accelerator) -> None:
    """See that the weights of a model that FSDP2 prepared are in fact spread.

    Raises:
        DistillError: some are not.
    """
    if not accelerator.is_fsdp2:
        return
    whole = [name for name, parameter in model.named_parameters() if not isinstance(parameter, DTensor)]
    if whole:
        raise DistillError(
            f"FSDP2 was asked for, but {len(whole):,} weights are not sharded ({whole[0]} is one); {_ADVICE}"
        )


def whole_model(model: Any, accelerator: Accelerator, *, load: Callable[[], Any]) -> Any:
    """A trained model in one piece, for the first process; all have to call it.

    Args:
        model: What was trained.
        accelerator: What prepared it.
        load: Gives the untrained model, which takes the gathered weights.
    """
    if not accelerator.is_fsdp2:
        return model
    weights = accelerator.get_state_dict(model)
    if not accelerator.is_main_process:
        return model
    whole = load()
    whole.load_state_dict(weights)
    return whole
