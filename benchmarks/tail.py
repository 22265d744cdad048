"""What it costs to throw the tail away: a student of free logits, at the width of a real vocabulary.

The teacher's distributions fall off as words do (Zipf, the sharper the smaller its tail beyond k), at a few positions;
the student starts as another such distribution over the same ids, as a base that the instruction has moved a little.
Both students see the same k candidates; one also the mass of the rest. After the same descent they are compared with
the teacher over the whole vocabulary.

    python -m benchmarks tail
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from vgid.pipeline.console import table

STEPS = 400
EXPONENTS = (2.5, 1.6, 1.3, 1.1)
"""Of the teacher's probabilities by rank."""


def main() -> None:
    """With the defaults."""
    run(parse([]))


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vocab", type=int, default=151_936)
    parser.add_argument("--topk", type=int, default=64)
    parser.add_argument("--positions", type=int, default=4)
    return parser.parse_args(arguments)


def run(options: argparse.Namespace) -> None:
    """Print a line for each teacher."""
    import torch

    torch.manual_seed(0)
    lines: list[list[Any]] = []
    for exponent in EXPONENTS:
        rank = torch.arange(1, options.vocab + 1, dtype=torch.float64).log()
        order = torch.stack([torch.randperm(options.vocab) for _ in range(options.positions)])
        logits = -exponent * rank.expand(options.positions, -1).gather(-1, order)
        base = logits + torch.randn_like(logits)
        teacher = torch.log_softmax(logits, dim=-1)
        top = teacher.topk(options.topk)
        tail = torch.log1p(-top.values.exp().sum(-1))
        kept = top.values - top.values.logsumexp(-1, keepdim=True)
        students = {
            "base": base,
            "with the tail": _student(base, top.indices, top.values, tail),
            "without it": _student(base, top.indices, kept, torch.full_like(tail, -torch.inf)),
        }
        for name, student in students.items():
            compared = _compare(student, teacher, top.indices)
            lines.append([round(tail.exp().mean().item(), 3), name, *[round(value, 3) for value in compared]])
    print(table(["teacher's tail", "student", "KL, nats", "student's tail", "entropy error, nats"], lines))


def _student(base: Any, ids: Any, logprobs: Any, tail: Any) -> Any:
    """Logits after a descent on what the cache holds."""
    import torch

    from vgid.stage2_distill.loss_kernels import SparseTargets, logits_loss
    from vgid.stage2_distill.settings import LossSettings

    logits = base[None].clone().requires_grad_()
    mask = torch.ones(1, len(base), dtype=torch.bool)
    targets = SparseTargets(ids[None], logprobs[None], tail[None], mask)
    optimizer = torch.optim.Adam([logits], lr=0.05)
    for _ in range(STEPS):
        optimizer.zero_grad()
        logits_loss(logits, targets, weight_B=torch.ones(1), loss=LossSettings()).loss.backward()
        optimizer.step()
    return logits.detach()[0]


def _compare(logits: Any, teacher: Any, ids: Any) -> tuple[float, float, float]:
    """KL(teacher || student) over all ids, the student's mass outside `ids`, and what its entropy is off by."""
    import torch

    student = torch.log_softmax(logits, dim=-1)
    outside = torch.ones_like(teacher, dtype=torch.bool).scatter_(-1, ids, False)
    entropies = [-(each.exp() * each).sum(-1) for each in (student, teacher)]
    return (
        float((teacher.exp() * (teacher - student)).sum(-1).mean()),
        float((student.exp() * outside).sum(-1).mean()),
        float((entropies[0] - entropies[1]).mean()),
    )


if __name__ == "__main__":
    run(parse(None))
