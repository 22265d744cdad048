"""Run one distillation in two CPU processes; started by the tests, since torch's process group is per process.

usage: two_processes.py JOB

JOB is a pickled dict: the arguments of `distill` but for settings, their `changes`, and what `run_job` takes.
"""

from __future__ import annotations

import os
import pickle
import socket
import sys
from pathlib import Path
from typing import Any

from torch.multiprocessing.spawn import spawn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))


def work(rank: int, job: str, port: int) -> None:
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "ACCELERATE_USE_CPU": "true"}
    run_job(rank, **pickle.loads(Path(job).read_bytes()))


def shard_on_the_cpu() -> None:
    """Let accelerate do here what it does on GPUs: all of its FSDP2 but for the choice of it, over gloo."""
    from accelerate import FullyShardedDataParallelPlugin
    from accelerate.state import PartialState
    from accelerate.utils import DistributedType
    from transformers import Trainer

    plain = Trainer.create_accelerator_and_postprocess

    def create(self: Trainer) -> None:
        plain(self)
        state: Any = self.accelerator.state
        state.fsdp_plugin, self.is_fsdp_enabled = FullyShardedDataParallelPlugin(), True
        # As accelerate does where it decides so itself.
        state.distributed_type = PartialState._shared_state["distributed_type"] = DistributedType.FSDP

    Trainer.create_accelerator_and_postprocess = create


def run_job(
    rank: int,
    *,
    changes: dict[str, Any],
    optimizer: str,
    stop_after: int,
    environment: dict[str, str],
    sharded: bool,
    **arguments: Any,
) -> None:
    """Only the second process is asked to stop, after so many steps; 0 asks nobody. An error gives the exit code.

    With `watch` among the changes, the first look ends the training.
    """
    os.environ |= environment
    if sharded:
        shard_on_the_cpu()
    from distill_cases import make_settings, optimizer_of_trainer

    from vgid.errors import VgidError
    from vgid.stage2_distill.records import Observation
    from vgid.stage2_distill.trainer import distill

    steps = list[int]()

    def watch(model: Any, step: int) -> Observation:
        assert rank == 0, "the first process looks, the others wait"
        return Observation(metrics=[], is_enough=True)

    try:
        with optimizer_of_trainer(optimizer):
            distill(
                settings=make_settings(**changes),
                progress=lambda loss, num_steps: steps.append(loss.step),
                watch=watch,
                should_stop=lambda: rank == 1 and 0 < stop_after <= len(steps),
                **arguments,
            )
    except VgidError as error:
        print(f"process {rank}: {error}", flush=True)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        free_port = probe.getsockname()[1]
    spawn(work, args=(sys.argv[1], free_port), nprocs=2)
