"""A stop that is asked for, and who hears of it."""

from __future__ import annotations

import signal

import pytest

from vgid.pipeline.signals import stop_signal


def test_what_is_asked_for_inside_is_known_outside_and_said_in_the_words_of_the_inner_work(capsys):
    before = signal.getsignal(signal.SIGTERM)
    with stop_signal("the outer work ends") as outer:
        with stop_signal("the inner work ends") as inner:
            assert not inner() and not outer()
            signal.raise_signal(signal.SIGTERM)
            assert inner()
        assert outer()
        signal.raise_signal(signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) is before
    assert capsys.readouterr().err == "stopping: the inner work ends\nstopping: the outer work ends\n"
    with stop_signal("other work ends") as later:
        assert not later()


def test_a_second_ctrl_c_interrupts_at_once():
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt), stop_signal("the work ends") as should_stop:
        signal.raise_signal(signal.SIGINT)
        assert should_stop()
        signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before
