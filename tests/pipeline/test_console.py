"""What a person sees while something runs."""

from __future__ import annotations

import io
import sys

import pytest

from vgid.errors import DistillError
from vgid.pipeline.console import one_speaks, progress, say, sparkline


def test_a_curve_falls_with_its_values_and_starts_from_zero() -> None:
    assert sparkline([8.0, 4.0, 2.0, 0.0]) == "█▅▃▁"
    assert sparkline([0.0, 0.0]) == "▁▁"
    assert sparkline([]) == ""


def test_what_rounding_put_below_zero_is_drawn_as_zero() -> None:
    assert sparkline([-1e-3, 1e-9]) == "▁█"
    assert sparkline([-1.0, -2.0]) == "▁▁"


def test_a_long_curve_keeps_its_width_and_its_shape() -> None:
    curve = sparkline([float(1000 - step) for step in range(1000)], width=8)
    assert len(curve) == 8
    assert list(curve) == sorted(curve, reverse=True)


def test_where_the_terminal_has_no_such_letters_there_is_no_curve(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stderr", io.TextIOWrapper(io.BytesIO(), encoding="ascii"))
    assert sparkline([1.0, 2.0]) == ""


@pytest.mark.parametrize(("rank", "is_heard"), [(None, True), ("0", True), ("1", False)])
def test_of_several_processes_the_first_speaks_and_all_may_fail(
    rank: str | None, is_heard: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("RANK", raising=False)
    if rank is not None:
        monkeypatch.setenv("RANK", rank)
    with pytest.raises(DistillError, match="not finite"), one_speaks():
        say("a remark")
        with progress("distill") as report:
            report(3, 3)
        print("a result")
        raise DistillError("the loss is not finite")
    print("error", file=sys.stderr)
    shown = capsys.readouterr()
    assert (shown.out, shown.err) == (
        ("a result\n", "a remark\ndistill: 3/3 \nerror\n") if is_heard else ("", "error\n")
    )
