"""Rows are worked on beside the caller: in order, none lost, errors come back, waiting is counted."""

import threading
import time

import pytest

from vgid.stage1_teacher.background import Background


def test_every_row_is_worked_on_in_order_in_another_thread():
    seen: list[tuple[int, int]] = []
    with Background[int](lambda row: seen.append((row, threading.get_ident())), size=3) as background:
        for row in range(100):
            background.add(row)
    assert [row for row, _ in seen] == list(range(100))
    assert threading.get_ident() not in {thread for _, thread in seen}


def test_the_caller_goes_on_until_the_queue_is_full_and_then_waits_and_counts_it():
    gate = threading.Event()

    def held(row: int) -> None:
        gate.wait()

    with Background[int](held, size=2) as background:
        started = time.monotonic()
        for row in range(3):  # one at work, two in the queue
            background.add(row)
            time.sleep(0.01)
        assert background.waited == 0 and time.monotonic() - started < 5
        threading.Timer(0.3, gate.set).start()
        background.add(3)
        assert 0.1 < background.waited < 5


def test_an_error_is_raised_at_the_next_row_or_at_the_end():
    def work(row: int) -> None:
        if row == 1:
            raise ValueError("disk full")

    with pytest.raises(ValueError, match="disk full"), Background[int](work, size=1) as background:
        for row in range(1000):
            background.add(row)
            time.sleep(0.001)
    with pytest.raises(ValueError, match="disk full"), Background[int](work, size=8) as background:
        background.add(1)


def test_an_error_of_the_thread_does_not_leave_the_caller_waiting_for_room():
    def work(row: int) -> None:
        time.sleep(0.05)
        raise ValueError("disk full")

    with pytest.raises(ValueError, match="disk full"), Background[int](work, size=1) as background:
        for row in range(50):
            background.add(row)


def test_rows_added_before_an_error_of_the_caller_are_kept():
    seen: list[int] = []
    with pytest.raises(KeyError), Background[int](seen.append, size=10) as background:
        for row in range(5):
            background.add(row)
        raise KeyError("the engine")
    assert seen == [0, 1, 2, 3, 4]
