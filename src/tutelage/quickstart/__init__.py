"""`tutelage quickstart`: two ways to distil the small teacher that the package carries, side by side, on a CPU."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from tutelage.quickstart import experiment, plot, report
from tutelage.quickstart.settings import Settings
from tutelage.report import write_report

__all__ = ["Settings", "main"]


def main(*, output: Path, seed: int = 0, settings: Settings | None = None, console: Console | None = None) -> None:
    """Distils the carried student by supervised KD and by on-policy GKD, tests both once, and shows what came of it.

    Args:
        output: folder for the two runs, results.json, plot.png, report.html and examples.md; earlier ones in it are replaced.
        seed: keys every random choice.
        settings: models, sizes and methods; None: the ones the package carries.
        console: where to print; None: standard output.

    Raises:
        UserError: the output folder cannot be written, or the models cannot be loaded.
        Interrupted: SIGTERM or Ctrl-C during a training.
    """
    settings = settings or Settings()
    console = console or Console(highlight=False)
    report.print_header(console, settings, output)
    outcome = experiment.compare(settings, output, seed, console)
    plot.draw(outcome, output / "plot.png")
    report.write(outcome, output)
    write_report([output / method.name for method in (settings.supervised, settings.on_policy)], output / "report.html")
    report.print_outcome(console, outcome, output)
