"""`tutelage quickstart`: two ways to distil the small teacher that the package carries, side by side, on a CPU."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console

from tutelage.console import make_console
from tutelage.quickstart import experiment, plot, report
from tutelage.quickstart.settings import Options, Settings
from tutelage.report import write_report
from tutelage.train.signals import Interrupted, leaving_on_sigterm

__all__ = ["Options", "Settings", "main"]


def main(*, output: Path, seed: int = 0, settings: Settings | None = None, console: Console | None = None) -> None:
    """Distils the carried student by supervised KD and by on-policy GKD, tests both once, and shows what came of it.

    Called again with the same arguments it goes on where it was: what is trained is not trained again.

    Args:
        output: folder for the two runs, results.json, plot.png, report.html and examples.md; those of other settings or another
            seed are replaced.
        seed: keys every random choice.
        settings: models, sizes and methods; None: the ones the package carries.
        console: where to print; None: standard output.

    Raises:
        UserError: the output folder cannot be written, or the models cannot be loaded.
        Interrupted: SIGTERM or Ctrl-C; during a training after the step under way and its checkpoint.
    """
    settings = settings or Settings()
    console = console or make_console(highlight=False)
    report.print_header(console, settings, output)
    with _going_on_when_called_again():
        outcome = experiment.compare(settings, output, seed, console)
        plot.draw(outcome, output / "plot.png")
        report.write(outcome, output)
        runs = [output / method.name for method in (settings.supervised, settings.on_policy)]
        write_report(runs, output / "report.html")
    report.print_outcome(console, outcome, output)


@contextmanager
def _going_on_when_called_again() -> Iterator[None]:
    """Has every interruption say how to go on with the quickstart, and not with the one run that it interrupts."""
    try:
        with leaving_on_sigterm(lambda: ""):
            yield
    except (Interrupted, KeyboardInterrupt) as stop:
        number = stop.signal_number if isinstance(stop, Interrupted) else signal.SIGINT
        name = signal.Signals(number).name
        raise Interrupted(f"{name}: stopped; the same command goes on from here", number) from None
