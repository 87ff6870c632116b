"""`tutelage compare`: several methods from one student, hyperparameters chosen on validation, the test split used once."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console

from tutelage.compare import config
from tutelage.compare.cell import work
from tutelage.compare.checks import check_tests
from tutelage.compare.comparison import Comparison, ComparisonResult
from tutelage.compare.execute import run_here, run_spawned
from tutelage.console import make_console

__all__ = ["ComparisonResult", "compare"]


def compare(
    recipe: Path | Mapping[str, Any],
    *,
    options: Mapping[str, Any] | None = None,
    console: Console | None = None,
    in_processes: bool = True,
) -> ComparisonResult:
    """Trains every method of a recipe, tests the finished students, and writes tables and plots.

    What is finished in the output folder is not done again, and what was interrupted goes on: after a kill, give the same
    command.

    Args:
        recipe: a YAML file, or what it would hold; the keys are those of `compare.config.ComparisonRecipe`.
        options: nested keys that replace the recipe's, such as {"jobs": 2, "base": {"task": {"data": "FOLDER"}}}.
        console: for progress and tables; None: standard output.
        in_processes: every run in a process of its own, `jobs` at a time. They start by importing the program anew: a script
            that calls this keeps the call behind `if __name__ == "__main__":`. False: one run after the other, here.

    Returns:
        The tables; runs that failed are in `failures`, and `exit_code` is 1 then.

    Raises:
        UserError: the recipe, a configuration, a task or the output folder is wrong; before any long work.
        Interrupted: SIGTERM or Ctrl-C, after every running cell has written its checkpoint.
    """
    checked = config.read(recipe, options)
    execute = run_spawned if in_processes else run_here
    comparison = Comparison(checked, console or make_console(), work, execute)
    check_tests(comparison.possible, comparison.protocol)
    return comparison.run()
