"""SIGTERM and Ctrl-C: finish the step, write a checkpoint, leave; outside the steps, say what can be done and leave."""

from __future__ import annotations

import shlex
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, Never, Self

_AGAIN_SECONDS = 5.0  # longer than it takes to leave


class Interrupted(BaseException):
    """The run was asked to stop; between steps it has checkpointed.

    Like KeyboardInterrupt no Exception: it may be raised inside any library, whose `except Exception` must not swallow it.

    Attributes:
        signal_number: the signal received; a process ends with 128 + it.
    """

    def __init__(self, message: str, signal_number: int) -> None:
        super().__init__(message)
        self.signal_number = signal_number


def how_to_go_on(output: Path) -> str:
    """What goes on with the run in a folder: a whole command, for the folder holds the run's configuration."""
    recipe = shlex.quote(str(output / "config.yaml"))
    return f"go on with: tutelage train {recipe} --resume (in Python: the same call with resume=True)"


class StopRequest:
    """Turns the first SIGTERM or SIGINT into a request, within its context; a second one acts at once.

    Signal handlers belong to the main thread; in any other, signals are left alone.
    """

    def __init__(self) -> None:
        self.requested = False
        self._number = 0
        self._earlier: dict[int, object] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._earlier[number] = signal.signal(number, self._take)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._restore()

    def leave_if_requested(self, step: int, output: Path) -> None:
        """Raises Interrupted when a signal came; the caller has written the checkpoint of `step`."""
        if self.requested:
            name = signal.Signals(self._number).name
            raise Interrupted(f"{name}: stopped after step {step}, {how_to_go_on(output)}", self._number)

    def _take(self, number: int, frame: FrameType | None) -> None:
        self.requested, self._number = True, number
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._earlier.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
        self._earlier = {}


class _Reminder:
    """Sends SIGTERM once more after a while: Python prints and drops what a handler raises inside a weak reference's callback or finaliser.

    A process has one such timer, which may be a host program's: it is taken when a signal has come, not before, and given back.
    """

    def __init__(self) -> None:
        self._earlier: tuple[Any, tuple[float, float]] | None = None

    def set(self) -> None:
        if sys.platform == "win32":  # has no timers: a signal that was dropped counts at the end of the context
            return
        handler = signal.signal(signal.SIGALRM, lambda *_: signal.raise_signal(signal.SIGTERM))
        timer = signal.setitimer(signal.ITIMER_REAL, _AGAIN_SECONDS)
        if self._earlier is None:
            self._earlier = handler, timer

    def give_back(self) -> None:
        if sys.platform != "win32" and self._earlier is not None:
            handler, timer = self._earlier
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, handler)
            signal.setitimer(signal.ITIMER_REAL, *timer)


@contextmanager
def leaving_on_sigterm(advice: Callable[[], str]) -> Iterator[None]:
    """Turns SIGTERM into `Interrupted` at once, within its context; where it would end the process without a word.

    For the work around the steps, which a `StopRequest` guards. Only the main thread has signal handlers, as there.

    Args:
        advice: what can be done next, asked when the signal comes.
    """

    came = False
    reminder = _Reminder()

    def leave(number: int, frame: FrameType | None) -> Never:
        nonlocal came
        came = True
        reminder.set()
        raise Interrupted(f"SIGTERM: stopped, {advice()}", signal.SIGTERM)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    earlier = signal.signal(signal.SIGTERM, leave)
    try:
        yield
        if came:
            leave(signal.SIGTERM, None)
    finally:
        reminder.give_back()
        signal.signal(signal.SIGTERM, earlier)
