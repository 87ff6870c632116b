from __future__ import annotations

import os
import signal
import threading
from contextlib import suppress
from pathlib import Path

import pytest

from tutelage.train.signals import Interrupted, StopRequest, leaving_on_sigterm


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_first_signal_is_a_request(number: signal.Signals) -> None:
    with StopRequest() as stop:
        stop.leave_if_requested(1, Path("out"))
        os.kill(os.getpid(), number)
        assert stop.requested
        with pytest.raises(
            Interrupted, match=f"{number.name}: stopped after step 7, go on with --resume --output out"
        ) as left:
            stop.leave_if_requested(7, Path("out"))
    assert left.value.signal_number == number


def test_a_second_signal_acts_at_once() -> None:
    # A shell starts background jobs with SIGINT ignored, and Python leaves it so.
    earlier = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        _interrupt_twice()
    finally:
        signal.signal(signal.SIGINT, earlier)


def _interrupt_twice() -> None:
    with StopRequest() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.requested
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_the_earlier_handlers_come_back() -> None:
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    with StopRequest():
        assert signal.getsignal(signal.SIGTERM) != before[0]
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == before


def test_other_threads_leave_signals_alone() -> None:
    seen = []

    def body() -> None:
        with StopRequest() as stop:
            seen.append((stop.requested, signal.getsignal(signal.SIGINT)))

    expected = signal.getsignal(signal.SIGINT)
    thread = threading.Thread(target=body)
    thread.start()
    thread.join()
    assert seen == [(False, expected)]


def test_sigterm_outside_the_steps_says_what_to_do_and_leaves() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with leaving_on_sigterm(lambda: "go on with --resume"):
        with StopRequest() as stop:  # the steps' own comes first, and gives back
            os.kill(os.getpid(), signal.SIGTERM)
            assert stop.requested
        with pytest.raises(Interrupted, match="SIGTERM: stopped, go on with --resume") as left:
            os.kill(os.getpid(), signal.SIGTERM)
    assert left.value.signal_number == signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) == before


def test_no_library_swallows_the_signal() -> None:
    # As many do around an optional import or file.
    with pytest.raises(Interrupted, match="stopped, again"), leaving_on_sigterm(lambda: "again"), suppress(Exception):
        os.kill(os.getpid(), signal.SIGTERM)


def test_other_threads_work_without_handlers() -> None:
    seen = []

    def body() -> None:
        with leaving_on_sigterm(lambda: ""):
            seen.append(signal.getsignal(signal.SIGTERM))

    expected = signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=body)
    thread.start()
    thread.join()
    assert seen == [expected]
