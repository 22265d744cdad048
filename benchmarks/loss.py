"""Loss plus backward against dense torch, at the width of Qwen's vocabulary: time, and memory beyond the inputs.

Each form runs in a process of its own, alternating with the others, so that one's allocator does not serve the next.
On a CPU memory is the process's peak; on a GPU torch's own. The reference is what a trainer without a sparse loss does:
float32 log-softmax, the same k+1 divergence by gather and log-sum-exp, autograd.

    python -m benchmarks loss
    python -m benchmarks.loss --tokens 1024 --device cuda
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vgid.pipeline.console import table

FORMS = ("dense", "sparse", "dense through the head", "fused head")


def main() -> None:
    """Both types of logits, on the CPU."""
    run(parse([]))


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=1024)
    parser.add_argument("--vocab", type=int, default=151_936)
    parser.add_argument("--width", type=int, default=896, help="of the hidden states; 1536 for a 2B model")
    parser.add_argument("--topk", type=int, default=64)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, default=3, help="processes of each form")
    parser.add_argument("--form", choices=FORMS, help=argparse.SUPPRESS)
    parser.add_argument("--dtype", default="float32", help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


def run(options: argparse.Namespace) -> None:
    """Print one line a form and type."""
    if options.form is not None:
        print(json.dumps(measure(options)))
        return
    lines: list[list[Any]] = []
    for dtype in ("float32", "bfloat16"):
        found: dict[str, list[dict[str, float]]] = {form: [] for form in FORMS}
        for _ in range(options.rounds):
            for form in FORMS:
                found[form].append(_in_a_process(options, form, dtype))
        for form, reference in (("sparse", "dense"), ("fused head", "dense through the head")):
            pairs = list(zip(found[form], found[reference], strict=True))
            lines.append(
                [dtype, form]
                + [round(statistics.median(pair[0][key] / pair[1][key] for pair in pairs), 3) for key in ("s", "MiB")]
                + [round(statistics.median(each["s"] for each in found[form]), 3)]
                + [round(statistics.median(each["MiB"] for each in found[form]))]
                + [round(statistics.median(each["MiB"] for each in found[reference]))]
            )
    print(table(["logits", "form", "time / dense", "memory / dense", "s", "MiB", "dense MiB"], lines))


def measure(options: argparse.Namespace) -> dict[str, float]:
    """Seconds of the fastest of three passes, and the most memory beyond the inputs."""
    import torch

    from vgid.stage2_distill.loss_kernels import SparseTargets, fused_head_loss, logits_loss
    from vgid.stage2_distill.settings import LossSettings

    device, dtype = options.device, getattr(torch, options.dtype)
    torch.manual_seed(0)
    tokens, vocab, topk = options.tokens, options.vocab, options.topk
    cells = torch.log_softmax(torch.randn(1, tokens, topk + 1, device=device), dim=-1)
    ids = torch.rand(1, tokens, vocab // topk, device=device).argsort(-1)[..., :1] * topk + torch.arange(
        topk, device=device
    )
    mask = torch.ones(1, tokens, dtype=torch.bool, device=device)
    targets = SparseTargets(ids, cells[..., :-1], cells[..., -1], mask)
    weight_B, loss = torch.full((1,), 1 / tokens, device=device), LossSettings()
    with_head = "head" in options.form
    if with_head:
        head = torch.nn.Linear(options.width, vocab, bias=False, device=device, dtype=dtype).requires_grad_(False)
        given = torch.randn(1, tokens, options.width, device=device, dtype=dtype)
    else:
        head, given = None, torch.randn(1, tokens, vocab, device=device, dtype=dtype)

    def once() -> None:
        inputs = given.detach().requires_grad_()
        if options.form == "fused head":
            assert head is not None
            result = fused_head_loss(inputs, head, targets, weight_B=weight_B, loss=loss).loss
        elif options.form == "sparse":
            result = logits_loss(inputs, targets, weight_B=weight_B, loss=loss).loss
        else:
            result = _dense(inputs if head is None else head(inputs), targets)
        result.backward()

    before = _memory(device)
    seconds = []
    for _ in range(3):
        _wait(device)
        started = time.perf_counter()
        once()
        _wait(device)
        seconds.append(time.perf_counter() - started)
    return {"s": min(seconds), "MiB": (_memory(device, peak=True) - before) / 2**20}


def _dense(logits: Any, targets: Any) -> Any:
    import torch

    logq = torch.log_softmax(logits.float(), dim=-1)
    stored = logq.gather(-1, targets.topk_ids_BTK)
    rest = logq.scatter(-1, targets.topk_ids_BTK, -torch.inf).logsumexp(-1)
    logp, tail = targets.topk_logprobs_BTK, targets.tail_logprob_BT
    return ((logp.exp() * (logp - stored)).sum(-1) + tail.exp() * (tail - rest)).mean()


def _in_a_process(options: argparse.Namespace, form: str, dtype: str) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.loss", "--form", form, "--dtype", dtype]
    for name in ("tokens", "vocab", "width", "topk", "device"):
        command += [f"--{name}", str(getattr(options, name))]
    done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=Path(__file__).parents[1])
    return json.loads(done.stdout.splitlines()[-1])


def _memory(device: str, *, peak: bool = False) -> float:
    """Bytes; the process's on a CPU."""
    if device != "cpu":
        import torch

        return torch.cuda.max_memory_allocated() if peak else torch.cuda.memory_allocated()
    if peak:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    resident = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmRSS"))
    return int(resident.split()[1]) * 1024


def _wait(device: str) -> None:
    if device != "cpu":
        import torch

        torch.cuda.synchronize()


if __name__ == "__main__":
    run(parse(None))
