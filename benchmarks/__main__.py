"""Run every benchmark, or those named: `python -m benchmarks [worlds sql]`. Results go to `runs/bench/`."""

from __future__ import annotations

import sys
from importlib import import_module

NAMES = (
    "encodings",
    "writing",
    "training_reads",
    "size",
    "capture",
    "teacher",
    "stream",
    "loss",
    "tail",
    "distill",
    "offline_online",
    "worlds",
)


def main(names: list[str]) -> None:
    """Run the named benchmarks in order, all of them without names."""
    for name in names or NAMES:
        if name not in NAMES:
            sys.exit(f"error: benchmark {name!r} is unknown; choose from {', '.join(NAMES)}")
        print(f"\n=== {name} ===", flush=True)
        import_module(f"benchmarks.{name}").main()


if __name__ == "__main__":
    main(sys.argv[1:])
