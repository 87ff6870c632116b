from __future__ import annotations

import os
import signal
import time
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from tutelage.train import signals
from tutelage.train.signals import Interrupted, StopRequest, how_to_go_on, leaving_on_sigterm

signals_are_dropped = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


def in_another_thread(body: Callable[[], Any]) -> Any:
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(body).result()


def wait_until(happened: Callable[[], Any]) -> None:
    """Until a signal has done its work; 20 seconds at most."""
    for _ in range(2000):
        if happened():
            break
        time.sleep(0.01)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_first_signal_is_a_request(number: signal.Signals) -> None:
    with StopRequest() as stop:
        stop.leave_if_requested(1, Path("out"))
        os.kill(os.getpid(), number)
        assert stop.requested
        with pytest.raises(
            Interrupted, match=f"{number.name}: stopped after step 7, go on with: tutelage train"
        ) as left:
            stop.leave_if_requested(7, Path("out"))
    assert left.value.signal_number == number


def test_the_command_that_goes_on_can_be_copied_into_a_shell() -> None:
    command = "tutelage train 'my runs/1/config.yaml' --resume"
    assert how_to_go_on(Path("my runs/1")) == f"go on with: {command} (in Python: the same call with resume=True)"


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
    def requested_and_handler() -> tuple[bool, Any]:
        with StopRequest() as stop:
            return stop.requested, signal.getsignal(signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)
    assert in_another_thread(requested_and_handler) == (False, before)


def test_sigterm_outside_the_steps_says_what_to_do_and_leaves() -> None:
    before = signal.getsignal(signal.SIGTERM)

    def body() -> None:
        with leaving_on_sigterm(lambda: "go on with a command"):
            with StopRequest() as stop:  # the steps' own comes first, and gives back
                os.kill(os.getpid(), signal.SIGTERM)
                assert stop.requested
            os.kill(os.getpid(), signal.SIGTERM)
            pytest.fail("went on")

    with pytest.raises(Interrupted, match="SIGTERM: stopped, go on with a command") as left:
        body()
    assert left.value.signal_number == signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) == before


def test_no_library_swallows_the_signal() -> None:
    # As many do around an optional import or file.
    with pytest.raises(Interrupted, match="stopped, again"), leaving_on_sigterm(lambda: "again"), suppress(Exception):
        os.kill(os.getpid(), signal.SIGTERM)


def test_other_threads_work_without_handlers() -> None:
    def handler() -> Any:
        with leaving_on_sigterm(lambda: ""):
            return signal.getsignal(signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    assert in_another_thread(handler) == before


class Thing:
    """Something that a weak reference can point to."""


def swallow_a_signal() -> None:
    """SIGTERM while a weak reference's callback runs: Python drops what the handler raises there."""
    thing = Thing()
    reference = weakref.ref(thing, lambda _: signal.raise_signal(signal.SIGTERM))
    del thing
    assert reference() is None


def wait_before_the_steps() -> None:
    time.sleep(20)


def take_steps() -> None:
    with StopRequest() as request:
        wait_until(lambda: request.requested)
        request.leave_if_requested(3, Path("runs/x"))


@signals_are_dropped
@pytest.mark.parametrize(
    ("go_on", "left"),
    [(wait_before_the_steps, "SIGTERM: stopped, go on"), (take_steps, "stopped after step 3")],
)
def test_a_signal_that_was_dropped_comes_again(
    go_on: Callable[[], None], left: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(signals, "_AGAIN_SECONDS", 0.05)

    def body() -> None:
        with leaving_on_sigterm(lambda: "go on"):
            swallow_a_signal()
            go_on()
            pytest.fail("the signal never came again")

    with pytest.raises(Interrupted, match=left):
        body()


@signals_are_dropped
def test_a_dropped_signal_counts_at_the_end() -> None:
    alarm, term = signal.getsignal(signal.SIGALRM), signal.getsignal(signal.SIGTERM)
    with pytest.raises(Interrupted, match="stopped, go on"), leaving_on_sigterm(lambda: "go on"):
        swallow_a_signal()
    assert (signal.getsignal(signal.SIGALRM), signal.getsignal(signal.SIGTERM)) == (alarm, term)
    assert signal.getitimer(signal.ITIMER_REAL)[0] == 0


def test_a_timer_of_the_host_program_is_left_alone() -> None:
    rang = []
    earlier = signal.signal(signal.SIGALRM, lambda *_: rang.append("its own"))
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        with leaving_on_sigterm(lambda: ""):
            wait_until(lambda: rang)
        assert rang == ["its own"]
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, earlier)


@signals_are_dropped
def test_a_timer_of_the_host_program_goes_on_after_a_signal() -> None:
    try:
        signal.setitimer(signal.ITIMER_REAL, 1000)
        with pytest.raises(Interrupted), leaving_on_sigterm(lambda: ""):
            swallow_a_signal()
        assert signal.getitimer(signal.ITIMER_REAL)[0] > 900
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
