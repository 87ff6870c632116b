"""Bad input through the command line: status 2, one clear message, and not one training step."""

from __future__ import annotations

import json
import os
import types
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from tests.conftest import build_module, tokenizer
from tutelage import cli
from tutelage.train import checkpoint, config_io, optim

ROWS = [{"prompt": f"{a} + {b} =", "completion": f" {a + b}"} for a in range(3) for b in range(3)]


def save(folder: Path, name: str, seed: int, changed_tokenizer: bool = False) -> None:
    module: Any = build_module("llama", seed=seed, dtype=torch.float32, vocab=len(tokenizer()))
    module.save_pretrained(folder / name)
    if changed_tokenizer:
        raw = json.loads(tokenizer().backend_tokenizer.to_str())
        vocabulary = raw["model"]["vocab"]
        vocabulary["$"], vocabulary["%"] = vocabulary["%"], vocabulary["$"]
        other = PreTrainedTokenizerFast(
            tokenizer_object=Tokenizer.from_str(json.dumps(raw)), eos_token="</s>", pad_token="<pad>"
        )
        other.save_pretrained(folder / name)
    else:
        tokenizer().save_pretrained(folder / name)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    save(folder, "student", 0)
    save(folder, "teacher", 1)
    save(folder, "foreign", 2, changed_tokenizer=True)
    return folder


class World:
    """A run that would work, to be broken in one place.

    Attributes:
        folder: of the test, with rows.jsonl; the run goes to `output`.
        models: the folder with student, teacher and foreign.
        keys: of the recipe.
    """

    def __init__(self, folder: Path, models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder, self.models, self.monkeypatch = folder, models, monkeypatch
        self.output = folder / "run"
        self.keys: dict[str, Any] = {
            "student": str(models / "student"),
            "teacher": str(models / "teacher"),
            "output": str(self.output),
            "task": {
                "name": "jsonl",
                "data": self.data(ROWS),
                "options": {"max_prompt_tokens": 12, "max_new_tokens": 6},
            },
            "train": {"steps": 4, "batch_size": 2, "checkpoint_every": 1, "device": "cpu"},
            "eval": {"final": "none"},
            "log": {"progress": False},
        }

    def data(self, rows: Sequence[Any]) -> str:
        """A file of these rows; strings are lines as they are."""
        path = self.folder / "rows.jsonl"
        path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
        return str(path)

    def set(self, name: str, value: Any) -> None:
        """Changes one key of the recipe; a mapping joins the one that is there."""
        self.keys = config_io.deep_merge(self.keys, config_io.nest({name: value}))

    def train(self, *options: str) -> int:
        """The exit status of `tutelage train`."""
        recipe = self.folder / "recipe.yaml"
        recipe.write_text(yaml.safe_dump(self.keys))
        try:
            return cli.main(["train", str(recipe), *options])
        except SystemExit as left:
            return int(left.code or 0)


@pytest.fixture
def world(tmp_path: Path, models: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    return World(tmp_path, models, monkeypatch)


# Breaks the run in one place; returns options for its command line.
Break = Callable[[World], Sequence[str]]


def key(name: str, value: Any) -> Break:
    """One key of the recipe is wrong."""
    return keys({name: value})


def keys(changes: dict[str, Any]) -> Break:
    """Keys of the recipe do not fit together."""

    def damage(world: World) -> Sequence[str]:
        for name, value in changes.items():
            world.set(name, value)
        return ()

    return damage


def row(bad: Any, **changes: Any) -> Break:
    """The data has this row after two good ones."""

    def damage(world: World) -> Sequence[str]:
        world.data([*ROWS[:2], bad])
        return keys(changes)(world)

    return damage


def option(*words: str) -> Break:
    """The command line is wrong."""
    return lambda world: words


def after_a_run(*options: str, damage: Callable[[Path], None] = lambda output: None) -> Break:
    """There is a finished run in the output folder, which may be damaged."""

    def first_run(world: World) -> Sequence[str]:
        assert world.train() == 0
        damage(world.output)
        return options

    return first_run


def edited_data(world: World) -> Sequence[str]:
    """The rows have changed since the run that is to go on."""
    assert world.train() == 0
    world.data([*ROWS[:-1], {"prompt": "2 + 2 =", "completion": " 5"}])
    return ["--resume"]


def truncate_checkpoint(output: Path) -> None:
    os.truncate(output / "checkpoints" / "step-00000004" / "state.pt", 1000)


def truncate_record(output: Path) -> None:
    os.truncate(output / "run.json", 10)


def full_disk(world: World) -> Sequence[str]:
    world.monkeypatch.setattr(checkpoint.shutil, "disk_usage", lambda folder: types.SimpleNamespace(free=10_000))
    return ()


def output_under_a_file(world: World) -> Sequence[str]:
    world.set("output", f"{world.data(ROWS)}/run")
    return ()


def empty_file(world: World) -> Sequence[str]:
    world.data([])
    return ()


def foreign_teacher(world: World) -> Sequence[str]:
    world.set("teacher", str(world.models / "foreign"))
    return ()


CASES: dict[str, tuple[Break, Sequence[str]]] = {
    # The data.
    "missing data": (key("task.data", "./nowhere/rows.jsonl"), ["./nowhere/rows.jsonl, which does not exist", "no folder nowhere"]),
    "no data": (key("task.data", None), ["the jsonl task needs data"]),
    "empty data": (empty_file, ["rows.jsonl has no rows"]),
    "malformed line": (row('{"prompt": "1", "completion": '), ["rows.jsonl, line 3: not valid JSON", "each line must be one JSON object"]),
    "line that is no object": (row("[1, 2]"), ["rows.jsonl, line 3: an array"]),
    "missing column": (row({"prompt": "1", "answer": "2"}), ["rows.jsonl, line 3: no column 'completion'; it has 'prompt', 'answer'"]),
    "column of another type": (row({"prompt": 5, "completion": "2"}), ["line 3", "is a number; the prompt must be a string"]),
    "long prompt": (row({"prompt": "1 " * 20, "completion": "2"}), ["train example 2: the prompt has", "limit is 12; raise task.max"]),
    "empty completion": (row({"prompt": "1", "completion": " "}), ["rows.jsonl, line 3: column 'completion' is empty"]),
    "empty prompt": (row({"prompt": "", "completion": "2"}), ["rows.jsonl, line 3: column 'prompt' is empty"]),
    "every prompt too long": (keys({"task.max_prompt_tokens": 1, "task.skip_long_prompts": True}), ["no training prompts are left"]),
    "no split to evaluate": (key("eval.final", "test"), ["the test split is missing", "one file and gives the train split only"]),
    # The configuration.
    "beta 0": (key("divergence", "jsd(0)"), ["outside (0, 1)", "forward_kl", "reverse_kl"]),
    "beta 1": (key("divergence", "jsd(1.0)"), ["outside (0, 1)", "forward_kl", "reverse_kl"]),
    "unknown divergence": (key("divergence", "foward_kl"), ["foward_kl", "forward_kl"]),
    "unknown method": (key("method", "supervised"), ["unknown method 'supervised': did you mean 'supervised_kd'?"]),
    "unknown task": (key("task.name", "gsm8"), ["there is no task 'gsm8'; did you mean 'gsm8k'?"]),
    "unknown optimizer": (key("train.optimizer", "adam"), ["train.optimizer: saw 'adam'", "'adamw'"]),
    "unknown key": (key("train.learning_rat", 0.1), ["unknown key train.learning_rat; did you mean train.learning_rate?"]),
    "unknown option": (option("--train.learning-rat", "0.1"), ["--train.learning-rat", "--train.learning-rate"]),
    "unknown option of the task": (key("task.options.prompt_colum", "q"), ["has no option 'prompt_colum'; did you mean 'prompt_column'?"]),
    "wrong values": (keys({"train.steps": 0, "train.batch_size": "two"}), ["2 problems", "train.steps: saw 0", "batch_size: saw"]),
    "warm-up without end": (key("train.warmup_steps", 4), ["train.warmup_steps is 4", "train.steps=4"]),
    "likelihood with a divergence": (keys({"method": "sft", "divergence": "jsd(0.5)"}), ["method=sft", "takes no divergence"]),
    "key in the options of the task": (key("task.options.data", "rows.jsonl"), ["task.options.data is no option of a task; use task.data"]),
    "idle option": (key("train.matrix_learning_rate", 0.1), ["train.matrix_learning_rate=0.1 has no effect", "train.optimizer=muon"]),
    "no teacher": (key("teacher", None), ["method=gkd needs a teacher: set --teacher"]),
    "no student": (key("student", None), ["no student given: set --student"]),
    # The models.
    "missing student folder": (key("student", "./nowhere/student"), ["no model folder at './nowhere/student'"]),
    "missing teacher folder": (key("teacher", "./nowhere/teacher"), ["no model folder at './nowhere/teacher'"]),
    "different tokenizers": (foreign_teacher, ["different tokenizers: 2 ids differ", "student '$', teacher '%'"]),
    "too many layers": (
        keys({"student": None, "student_model": {"init": "teacher_layers", "layers": 3}}),
        ["layers=3, but the teacher has 2"],
    ),
    "past the last position": (key("rollout.max_new_tokens", 93), ["96 positions", "up to 5 and", "up to 93", "lower task.max_prompt"]),
    "completion past the last position": (
        row({"prompt": "1", "completion": "2 " * 100}, method="supervised_kd"),
        ["training example 2 has a prompt of 1 and a completion of", "has 96 positions"],
    ),
    # The output folder.
    "output under a file": (output_under_a_file, ["cannot write to the output folder", "Not a directory", "choose another output"]),
    "full disk": (full_disk, ["0 MB free", "train.keep_checkpoints"]),
    "an earlier run": (after_a_run(), ["already holds a run: go on with it (resume), delete it (overwrite)"]),
    "another configuration": (
        after_a_run("--resume", "--train.learning-rate", "0.5", "--divergence", "reverse_kl"),
        ["another configuration", "train.learning_rate: 0.0003 there, 0.5 now", "divergence: None there, 'reverse_kl' now"],
    ),
    "edited data": (edited_data, ["started with other training data: 9 examples there, 9 of task.data=", "not the same tokens"]),
    "truncated checkpoint": (
        after_a_run("--resume", damage=truncate_checkpoint),
        ["step-00000004 is damaged: state.pt is truncated or changed; delete that folder to go on from step 3"],
    ),
    "torn record of the run": (after_a_run("--resume", damage=truncate_record), ["cannot be resumed: run.json"]),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_bad_input(case: str, world: World, capsys: pytest.CaptureFixture[str]) -> None:
    damage, words = CASES[case]
    options = damage(world)
    capsys.readouterr()

    def step(*arguments: Any) -> None:
        raise AssertionError("a training step ran")

    world.monkeypatch.setattr(optim.Optimizer, "step", step)
    assert world.train(*options) == 2
    printed = " ".join(capsys.readouterr().err.replace("│", " ").split())
    for word in words:
        assert word in printed
    assert "Traceback" not in printed


def test_what_all_cases_start_from_works(world: World) -> None:
    assert world.train() == 0
    assert (world.output / "model" / "model.safetensors").exists()


def test_a_loss_that_is_not_finite(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    """Known only in the step: its batch is saved, the weights stay."""
    world.set("loss.temperature", 1e-40)
    assert world.train() == 2
    printed = capsys.readouterr().err
    assert "step 1: the loss is" in printed
    assert "the weights were not updated" in printed
    failed = world.output / "failed-step-00000001.json"
    assert str(failed) in printed
    assert len(json.loads(failed.read_text())["rollouts"]) == 2
    assert (world.output / "metrics.jsonl").read_text() == ""
    assert not (world.output / "checkpoints").exists()


def test_a_disk_that_fills_up_during_the_run(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    real = torch.save

    def fills_up(state: Any, file: Any) -> None:
        if (world.output / "checkpoints" / "step-00000002").exists():
            raise OSError(28, "No space left on device")
        real(state, file)

    with world.monkeypatch.context() as patched:
        patched.setattr(checkpoint.torch, "save", fills_up)
        assert world.train() == 2
    assert "no space left on the disk of" in capsys.readouterr().err
    assert sorted(p.name for p in (world.output / "checkpoints").iterdir()) == ["step-00000001", "step-00000002"]
    assert world.train("--resume") == 0
