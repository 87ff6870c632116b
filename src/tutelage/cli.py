"""The command line: `tutelage quickstart | train | eval | compare | report`.

Exit status: 0; 1 for a comparison in which a run failed; 2 for wrong input, with the reason and no traceback; 130 after
Ctrl-C and 143 after SIGTERM, which a training run obeys once it has written its checkpoint.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape

from tutelage import __version__
from tutelage.errors import UserError, nearest
from tutelage.train.signals import Interrupted

if TYPE_CHECKING:
    from tutelage.train.config import Config

WRONG_INPUT = 2
SIGNALLED = 128


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command.

    Args:
        argv: arguments after the program's name; None: the process's.

    Returns:
        The exit status.

    Raises:
        SystemExit: help of a command, or an option that does not parse.
    """
    name, *rest = list(sys.argv[1:] if argv is None else argv) or ["--help"]
    if name in ("-h", "--help"):
        Console(soft_wrap=True).print(_usage(), highlight=False)
        return 0
    if name == "--version":
        Console().print(__version__, highlight=False)
        return 0
    errors = Console(stderr=True, soft_wrap=True, highlight=False)
    try:
        if name not in COMMANDS:
            raise UserError(f"unknown command {name!r}: {nearest(name, COMMANDS)}")
        COMMANDS[name](rest)
    except UserError as error:
        errors.print(f"[bold red]error:[/] {escape(str(error))}")
        return WRONG_INPUT
    except Interrupted as stop:
        errors.print(f"[yellow]{escape(str(stop))}[/]")
        return SIGNALLED + stop.signal_number
    except KeyboardInterrupt:
        errors.print("[yellow]interrupted[/]")
        return SIGNALLED + signal.SIGINT
    return 0


def train_config(argv: Sequence[str]) -> Config:
    """The configuration `tutelage train` runs: the recipe's keys, then the options over them.

    Raises:
        UserError, SystemExit: as `main`.
    """
    from tutelage import cli_options
    from tutelage.train import config_io
    from tutelage.train.config import Recipe

    def parse(arguments: Sequence[str], recipe: Recipe) -> tuple[Path | None, dict[str, object]]:
        positional, options = cli_options.parse(
            Recipe,
            arguments,
            prog="tutelage train",
            description="Train a student. Options override the keys of the recipe.",
            defaults=recipe.model_dump(),
            positional={
                "recipe": cli_options.Positional(Path | None, "A YAML file with any of the keys.", required=False)
            },
        )
        return positional["recipe"], options

    # The first pass finds the recipe; the second has its keys as defaults, so that --help shows them.
    path, _ = parse([a for a in argv if a not in ("-h", "--help")], Recipe())
    raw = config_io.load_yaml(path) if path is not None else {}
    _, options = parse(argv, config_io.validate(Recipe, raw))
    return config_io.build(config_io.deep_merge(config_io.nest(raw), options))


def _train(argv: Sequence[str]) -> None:
    config = train_config(argv)
    from tutelage.run import run

    _hide_loading_bars()
    run(config)


def _eval(argv: Sequence[str]) -> None:
    from tutelage import cli_options
    from tutelage.eval.request import EvalRequest, run
    from tutelage.train import config_io

    positional, options = cli_options.parse(
        EvalRequest,
        argv,
        prog="tutelage eval",
        description="Evaluate a model on a task.",
        positional={"model": cli_options.Positional(str, "Folder or hub name of the model.")},
    )
    _hide_loading_bars()
    run(config_io.validate(EvalRequest, {**options, **positional}))


def _compare(argv: Sequence[str]) -> None:
    from tutelage import cli_options
    from tutelage.compare import compare, config

    def parse(arguments: Sequence[str], defaults: Mapping[str, object]) -> tuple[Path | None, dict[str, object]]:
        positional, options = cli_options.parse(
            config.ComparisonOptions,
            arguments,
            prog="tutelage compare",
            description="Compare methods from one student. Options override the keys of the recipe.",
            defaults=defaults,
            positional={
                "recipe": cli_options.Positional(
                    Path | None, "A YAML file: the methods, what they share, the search.", required=False
                )
            },
        )
        return positional["recipe"], options

    # As in `train_config`; without a recipe there is nothing but the help.
    path, _ = parse([a for a in argv if a not in ("-h", "--help")], {})
    if path is None:
        parse(argv, {})
        raise UserError("tutelage compare needs a recipe, such as recipes/compare/arithmetic.yaml")
    keys = config.read(path).model_dump(include=set(config.ComparisonOptions.model_fields))
    _, options = parse(argv, keys)
    _hide_loading_bars()
    if exit_code := compare(path, options=options).exit_code:
        raise SystemExit(exit_code)


def _report(argv: Sequence[str]) -> None:
    import tyro

    def options(runs: list[Path], /, output: Path = Path("report.html")) -> tuple[list[Path], Path]:
        """Draw runs side by side as one HTML file that needs no network.

        Args:
            runs: Folders of training runs, or of finished comparisons.
            output: The file to write.
        """
        return runs, output

    runs, output = tyro.cli(options, args=list(argv), prog="tutelage report")
    from tutelage.report import write_report

    Console(soft_wrap=True).print(f"report: {write_report(runs, output)}", markup=False, highlight=False)


def _hide_loading_bars() -> None:
    """Bars of transformers for every shard it reads would stand between the program's own lines."""
    from transformers.utils import logging

    logging.disable_progress_bar()


def _quickstart(argv: Sequence[str]) -> None:
    from tutelage import cli_options, quickstart
    from tutelage.train import config_io

    _, options = cli_options.parse(
        quickstart.Options,
        argv,
        prog="tutelage quickstart",
        description="Distil the small teacher the package carries: supervised KD and on-policy GKD side by side, on a CPU. "
        "Interrupted, the same command goes on where it was.",
    )
    asked = config_io.validate(quickstart.Options, options)
    quickstart.main(output=asked.output, seed=asked.seed, settings=quickstart.Settings(steps=asked.steps))


COMMANDS: dict[str, Callable[[Sequence[str]], None]] = {
    "quickstart": _quickstart,
    "train": _train,
    "eval": _eval,
    "compare": _compare,
    "report": _report,
}


def _usage() -> str:
    return f"""[bold]tutelage[/] {__version__}: knowledge distillation of language models

  tutelage [bold]quickstart[/]            distil the small teacher the package carries, in minutes on a CPU
  tutelage [bold]train[/] \\[RECIPE.yaml]   train a student; every key of the recipe is an option
  tutelage [bold]eval[/] MODEL            evaluate a Hugging Face model on a task
  tutelage [bold]compare[/] RECIPE.yaml   methods, divergences and seeds from one student, with tables and plots
  tutelage [bold]report[/] RUN...         draw runs side by side as one HTML file
  tutelage --version

Options of a command: tutelage COMMAND --help"""
