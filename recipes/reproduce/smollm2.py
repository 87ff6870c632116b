"""The paper's first claim on real tasks with a real model, for a GPU: three sizes of student cut out of SmolLM2-135M.

    .venv/bin/python recipes/reproduce/smollm2.py --model SmolLM2-135M-Instruct --task gsm8k --data FOLDER --layers 20 10 5
    .venv/bin/python recipes/reproduce/smollm2.py --model SmolLM2-135M-Instruct --task aeslc --data FOLDER --layers 27 --small

One after the other, each once: the teacher is fine-tuned on the task, every student recovers from being cut, and methods are
compared from each student with rates chosen on validation. `smollm2.yaml` has all settings. The same command goes on after a kill.
Tables go to docs/results/reproduction/smollm2-TASK-LAYERS (smollm2-TASK-small-LAYERS), where `verdicts.py` finds them.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import verdicts
from reproduce import HERE, keep_tables, once

from tutelage.compare import compare
from tutelage.console import make_console
from tutelage.errors import UserError
from tutelage.train import config_io
from tutelage.train.signals import Interrupted

SETTINGS = HERE / "smollm2.yaml"


class Study:
    """All runs of a task.

    Args:
        settings: what smollm2.yaml holds.
        task: one of its tasks.
        model: folder or hub name of SmolLM2.
        data: folder of the task's rows.
        output: folder of all runs of this task.
    """

    def __init__(self, settings: Mapping[str, Any], task: str, model: str, data: Path, output: Path) -> None:
        self.settings, self.model, self.output = settings, model, output
        self.common = config_io.deep_merge(settings["shared"], _filled(settings["tasks"][task], str(data)))

    @property
    def teacher(self) -> Path:
        """The run of the fine-tuning."""
        return self.output / "teacher"

    def student(self, layers: int) -> Path:
        """The run of a cut student's recovery."""
        return self.output / f"student-{layers}"

    def teacher_config(self) -> dict[str, Any]:
        """Of the fine-tuning: the teacher is the student of this run."""
        own = {"student": self.model, "output": str(self.teacher)}
        keys = config_io.deep_merge(self.common, config_io.deep_merge(self.settings["teacher"], own))
        return {name: value for name, value in keys.items() if name not in ("teacher_model", "loss")}

    def student_config(self, layers: int) -> dict[str, Any]:
        """Of the recovery."""
        own = {
            "teacher": str(self.teacher / "model"),
            "output": str(self.student(layers)),
            "student_model": {"layers": layers},
        }
        return config_io.deep_merge(self.common, config_io.deep_merge(self.settings["student"], own))

    def comparison(self, layers: int) -> dict[str, Any]:
        """Of all methods from a recovered student."""
        chosen = dict(self.settings["comparison"])
        models = {"teacher": str(self.teacher / "model"), "student": str(self.student(layers) / "model")}
        base = config_io.deep_merge(config_io.deep_merge(self.common, chosen["base"]), models)
        for key in ("limit", "temperatures"):  # a comparison has its own
            base["eval"] = {name: value for name, value in base["eval"].items() if name != key}
        return {**chosen, "base": base, "output": str(self.output / f"compare-{layers}")}


def chosen(settings: Mapping[str, Any], small: bool) -> dict[str, Any]:
    """The settings for a GPU, or those with what `small` puts over them."""
    whole = {name: value for name, value in settings.items() if name != "small"}
    return config_io.deep_merge(whole, settings["small"]) if small else whole


def _filled(tree: Any, data: str) -> Any:
    """The tree with the data's folder where its strings say "{data}"."""
    if isinstance(tree, Mapping):
        return {key: _filled(value, data) for key, value in tree.items()}
    return tree.replace("{data}", data) if isinstance(tree, str) else tree


def main() -> int:
    """The command line."""
    settings = config_io.load_yaml(SETTINGS)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="HuggingFaceTB/SmolLM2-135M-Instruct", help="default: %(default)s")
    parser.add_argument("--task", required=True, choices=settings["tasks"])
    parser.add_argument("--data", required=True, type=Path, help="folder with train.jsonl and the other splits")
    parser.add_argument(
        "--layers", nargs="+", type=int, default=[20, 10, 5], help="sizes of student (default: 20 10 5)"
    )
    parser.add_argument(
        "--small", action="store_true", help="for two processor cores: fewer and shorter steps, no search"
    )
    parser.add_argument("--output", type=Path, default=Path("runs/reproduce"))
    parser.add_argument("--results", type=Path, default=verdicts.FOLDER)
    options = parser.parse_args()
    console = make_console()
    name = f"smollm2-{options.task}{'-small' if options.small else ''}"
    study = Study(chosen(settings, options.small), options.task, options.model, options.data, options.output / name)
    failed = False
    try:
        once(study.teacher_config(), console)
        for layers in options.layers:
            once(study.student_config(layers), console)
            result = compare(study.comparison(layers), console=console)
            keep_tables(result.recipe.output, options.results / f"{name}-{layers}")
            failed |= bool(result.exit_code)
        console.print(f"verdicts: {verdicts.write(options.results)}", soft_wrap=True, highlight=False)
    except UserError as error:
        sys.exit(f"error: {error}")
    except Interrupted as stop:
        console.print(str(stop), soft_wrap=True, highlight=False, markup=False)
        return 128 + stop.signal_number
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
