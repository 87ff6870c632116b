"""What the README tells its reader to type is accepted: commands, options, the Python example."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from rich.console import Console

import tutelage
import tutelage.run
from tutelage import cli_options, divergences
from tutelage.api import distill
from tutelage.cli import train_config
from tutelage.compare.config import ComparisonOptions
from tutelage.eval.request import EvalRequest
from tutelage.quickstart import Options
from tutelage.tasks import TASKS, Task, load_task, task_options
from tutelage.train import config_io
from tutelage.train.config import Config, Recipe
from tutelage.train.methods import METHODS, resolve

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
GUIDES = [(ROOT / "docs" / f"{name}.md").read_text(encoding="utf-8") for name in ("methods", "comparisons")]
QUANTISED = "--teacher-model.quantization.quant_method bitsandbytes --teacher-model.quantization.load_in_8bit true"


def commands(name: str) -> list[list[str]]:
    """The arguments of every `tutelage NAME` that stands in a block of its own."""
    blocks = re.findall(rf"^    tutelage {name} ((?:.+\\\n)*.+)$", README, re.MULTILINE)
    return [shlex.split(block.replace("\\\n", " ")) for block in blocks]


def command(name: str) -> list[str]:
    """The one command of this name on the reader's own data and models."""
    (found,) = (arguments for arguments in commands(name) if "runs/try" not in arguments)
    return found


def python_examples() -> list[str]:
    """In their order: a distillation, a task of one's own, the loss alone."""
    codes = re.findall(r"```python\n(.+?)```", README, re.DOTALL)
    assert len(codes) == 3
    return codes


def test_the_first_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As it is written, but for its size."""
    monkeypatch.chdir(ROOT)
    (arguments,) = (arguments for arguments in commands("train") if "runs/try" in arguments)
    config = train_config(arguments)
    assert (config.train.steps, config.train.optimizer, str(config.output)) == (60, "muon", "runs/try")
    small = {
        "output": str(tmp_path / "try"),
        "train": {"steps": 2, "warmup_steps": 1, "batch_size": 2, "device": "cpu"},
        "eval": {"limit": 2, "marks": 1, "bootstrap": 10},
        "log": {"progress": False},
    }
    small_config = config_io.build(config_io.deep_merge(config.model_dump(mode="json"), small))
    result = tutelage.run.run(small_config, console=Console(quiet=True))
    assert [record["step"] for record in result.records] == [1, 2]
    (table,) = re.findall(r"^\| `runs/mine` then holds .+?\n\n", README, re.MULTILINE | re.DOTALL)
    cells = re.findall(r"^\| (`[^|]+`) \|", table.partition("| --- | --- |\n")[2], re.MULTILINE)
    listed = {name.split("/")[0] for cell in cells for name in re.findall(r"`([^`]+)`", cell)}
    assert {path.name for path in (tmp_path / "try").iterdir()} == listed


def test_train() -> None:
    config = train_config(command("train"))
    assert config.task.options == {"validation_fraction": 0.05, "metric": "rougeL"}
    assert str(config.output) == "runs/mine"
    assert resolve(config).student_data_fraction == 1


def test_a_quantised_teacher() -> None:
    assert QUANTISED in README
    config = train_config([*command("train"), *shlex.split(QUANTISED)])
    assert config.teacher_model.quantization == {"quant_method": "bitsandbytes", "load_in_8bit": True}


def test_eval_marks_what_train_evaluated() -> None:
    positional = {"model": cli_options.Positional(str, "")}
    given, options = cli_options.parse(EvalRequest, command("eval"), prog="", description="", positional=positional)
    request, trained = config_io.validate(EvalRequest, {**options, **given}), train_config(command("train"))
    assert request.task == trained.task
    assert request.split == "validation"
    assert Path(request.model) == trained.output / "model"
    assert request.teacher == trained.teacher


def test_the_recipe_of_compare_is_there() -> None:
    assert (ROOT / command("compare")[0]).is_file()


def test_the_reward_is_one_of_the_default_task(tmp_path: Path) -> None:
    (spelled,) = re.findall(r"`(--method rl_gkd .+?)`", README)
    config = train_config([*command("train"), *shlex.split(spelled)])
    assert resolve(config).divergence is not None
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"prompt": "1 + 1 = ", "completion": "2"}\n')
    task = load_task(config.task.name, data=str(rows))
    assert config.rl.reward in task.rewards  # type: ignore[attr-defined]
    assert config.rl.alpha == 0.9


def test_later_methods_are_spelled_as_they_are_accepted() -> None:
    rows = re.findall(r"^\| `(--[^`]+)` \|", GUIDES[0], re.MULTILINE)
    options = {spelled.split()[0]: spelled.split()[1:] for spelled in rows}
    clip = ["--rollout.importance-clip", *options["--rollout.importance-clip"]]
    for name in ("--rollout.replay", "--rollout.teacher-share"):
        objective = resolve(train_config([*command("train"), name, *options[name], *clip]))
        assert objective.importance_clip == 2
        assert (objective.replay > 0) != (objective.teacher_share > 0)
    sequence_level = ["--loss.sequence-level", *options["--loss.sequence-level"]]
    assert resolve(train_config([*command("train"), *sequence_level])).sequence_level


def test_python(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Config] = []

    def run(config: Config, **models: object) -> SimpleNamespace:
        seen.append(config)
        return SimpleNamespace(student=SimpleNamespace(module=None), before=None, after=None)

    monkeypatch.setattr(tutelage.run, "run", run)
    exec(python_examples()[0], {})
    (config,) = seen
    resolve(config)
    assert config.task.options["validation_fraction"] == 0.05  # or there is no `.before` and `.after`
    assert config.output != train_config(command("train")).output  # which holds a run


def test_the_members_of_a_task() -> None:
    (sentence,) = re.findall(r"the (\w+ members of `tutelage\.tasks\.Task`: .+?)\. ", " ".join(README.split()))
    number, *_ = sentence.split()
    members = re.findall(r"`(\w+)`", sentence)
    methods = {name for name, value in vars(Task).items() if callable(value) and not name.startswith("_")}
    assert set(members) == methods | set(Task.__annotations__)
    assert (number, len(members)) == ("seven", 7)


def test_a_task_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    given: dict[str, Any] = {}
    monkeypatch.setattr(tutelage, "distill", given.update, raising=False)
    exec(python_examples()[1], {})
    small = {"steps": 1, "batch_size": 2, "output": str(tmp_path / "sums"), "device": "cpu"}
    result = distill(
        **{**given, **small, "eval": {"limit": 2, "marks": 0, "bootstrap": 10}, "log": {"progress": False}}
    )
    assert result.after is not None
    first = result.after.completions[0]
    assert (result.after.rows[0].metric, first.prompt, first.reference) == ("exact_match", "80 + 0 =", " 80")
    task = given["task"]
    assert [len(task.examples(split)) for split in ("train", "validation", "test")] == [800, 100, 100]
    assert task.score([" 81", "83"], task.examples("validation")[1:3]).values == {"exact_match": 50.0}


def test_the_loss_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    names: dict[str, Any] = {}
    exec(python_examples()[2], names)
    with torch.no_grad():
        logp = [names[role](names["ids"]).logits.log_softmax(-1) for role in ("teacher", "student")]
    expected = divergences.parse("jsd(0.5)").value(*logp).mean()
    assert names["loss"].item() == pytest.approx(expected.item(), rel=1e-4)
    names["loss"].backward()
    assert names["student"].lm_head.weight.grad.abs().sum() > 0
    assert all(parameter.grad is None for parameter in names["teacher"].parameters())


def test_every_option_is_known() -> None:
    known = {
        key.replace("_", "-")
        for section in (Recipe, EvalRequest, ComparisonOptions, Options)
        for key in config_io.keys(section)
    }
    mappings = ("task.options", "teacher-model.quantization")
    named = set(re.findall(r"--([a-z][a-z-]*(?:\.[a-zA-Z0-9_-]+)*)", "\n".join([README, *GUIDES])))
    options = {option for task in TASKS for option in task_options(task)}
    assert len(named) > 40
    for option in sorted(named - {"help"}):
        if option.startswith("task.options."):
            inner = option.removeprefix("task.options.")
            assert inner == "KEY" or inner in options, option
        elif not option.startswith(mappings):
            assert option in known, option


def test_methods_and_tasks_are_all_in_their_tables() -> None:
    cells = re.findall(r"^\| `(\w+)` \|", README, re.MULTILINE)
    assert {*METHODS, *TASKS} <= set(cells)
