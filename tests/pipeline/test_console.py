"""What a person sees while something runs."""

from __future__ import annotations

import io

import pytest

from vgid.pipeline.console import sparkline


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
