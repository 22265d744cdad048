"""What every test runs under: no network, no telemetry, few threads, vLLM in this process."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, settings

if TYPE_CHECKING:
    from rehearsal import Rehearsal

# How long an example takes says how busy the machine is, not whether the code is right.
settings.register_profile("vgid", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("vgid")

# Before any library is imported: most of them read these once.
os.environ.update(
    HF_HUB_OFFLINE="1",
    HF_HUB_DISABLE_TELEMETRY="1",
    DO_NOT_TRACK="1",
    VLLM_NO_USAGE_STATS="1",
    TOKENIZERS_PARALLELISM="false",
    # Waiting OpenMP threads spin by default, which starves the other processes of a small machine.
    OMP_WAIT_POLICY="passive",
    VLLM_ENABLE_V1_MULTIPROCESSING="0",
)
if "PYTEST_XDIST_WORKER" in os.environ:  # one of several, each with its share of the cores
    os.environ.setdefault("OMP_NUM_THREADS", "1")


_LONG = ("test_demo.py", "test_generate.py", "test_cli.py", "test_run.py", "test_docs.py", "test_inspect_command.py")
"""Files of minutes, longest first. Begun last, one would leave the other process waiting."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long files first; skip tests marked `gpu` where there is none (torch is asked only if there are such tests)."""
    items.sort(key=lambda item: _LONG.index(item.path.name) if item.path.name in _LONG else len(_LONG))
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if not marked:
        return
    import torch

    if not torch.cuda.is_available():
        for item in marked:
            item.add_marker(pytest.mark.skip(reason="needs CUDA"))


@pytest.fixture(scope="session")
def rehearsal(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rehearsal]:
    """The teacher's command with the recorded answers of the real engine to 40 rows."""
    from rehearsal import Rehearsal

    rehearsal = Rehearsal(tmp_path_factory.mktemp("rehearsal"), rows=40)
    yield rehearsal
    rehearsal.close()
