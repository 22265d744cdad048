"""Run one distillation in two CPU processes; started by test_trainer.py, since torch's process group is per process."""

from __future__ import annotations

import os
import pickle
import socket
import sys
from pathlib import Path

from torch.multiprocessing.spawn import spawn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))


def work(rank: int, job: str, port: int) -> None:
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "ACCELERATE_USE_CPU": "true"}
    from distill_cases import make_settings

    from vgid.stage2_distill.trainer import distill

    student, examples, targets, changes, out, provenance = pickle.loads(Path(job).read_bytes())
    settings = make_settings(**changes)
    distill(student=student, examples=examples, targets=targets, settings=settings, out=out, provenance=provenance)


if __name__ == "__main__":
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        free_port = probe.getsockname()[1]
    spawn(work, args=(sys.argv[1], free_port), nprocs=2)
