"""Memory over 20,000 requests, and whether committing rows ever holds the engine up.

Anonymous memory is read after every thousandth row; a leak of one kilobyte a request would add 20 MB.
"""

from __future__ import annotations

import re
import tempfile
from pathlib import Path

from benchmarks.teacher import generate_into, parse, prepare
from vgid.pipeline.console import table
from vgid.stage1_teacher.generate import Progress

REQUESTS = 20_000
IMAGES = 64
_ANONYMOUS = re.compile(r"^RssAnon:\s+(\d+) kB$", re.MULTILINE)


def main() -> None:
    """Print the memory after the first, fifth, tenth, fifteenth and last thousand, and the share of time waited."""
    memory: list[int] = []

    def sample(now: Progress) -> None:
        if now.rows % 1000 == 0:
            memory.append(int(_ANONYMOUS.findall(Path("/proc/self/status").read_text())[0]))

    options = parse(["--images", str(IMAGES), "--tokens", "8"])
    draws = -(-REQUESTS // (4 * IMAGES))
    with tempfile.TemporaryDirectory() as scratch:
        bench = prepare(Path(scratch) / "model", options, side=56, image_tokens=16, draws=draws)
        result = generate_into(bench, Path(scratch) / "cache", on_progress=sample)
        bench.teacher.close()
    shown = [1, 5, 10, 15, len(memory)]
    rows = [[f"{at * 1000:,}", f"{memory[at - 1] / 1024:,.0f} MB", f"{memory[at - 1] / memory[0]:.3f}"] for at in shown]
    print(table(["requests", "anonymous memory", "to the first thousand"], rows))
    print(f"most over the first thousand: {max(memory) / memory[0]:.3f}")
    print(f"rows {result.generated:,}, {result.tokens / result.seconds:,.0f} tokens/s")
    print(f"share of time the engine waited for the disk: {result.waited / result.seconds:.4f}")


if __name__ == "__main__":
    main()
