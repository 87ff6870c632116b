from __future__ import annotations

import shlex
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tutelage import __version__, cli, quickstart
from tutelage.errors import UserError
from tutelage.train import config_io
from tutelage.train.signals import Interrupted

MODELS = ["--student", "s", "--teacher", "t"]


@pytest.fixture
def recipe(tmp_path: Path) -> str:
    path = tmp_path / "recipe.yaml"
    path.write_text(
        "student: s\nteacher: t\n"
        "task: {name: gsm8k, options: {shots: 4, split: main}}\n"
        "train: {steps: 7, batch_size: 5, learning_rate: 1e-4}\n"
        "eval: {temperatures: [0.0, 0.7]}\n"
    )
    return str(path)


def test_options_go_before_the_recipe_and_the_recipe_before_defaults(recipe: str) -> None:
    config = cli.train_config([recipe, "--train.steps", "9", "--teacher=other"])
    assert (config.train.steps, config.train.batch_size, config.train.checkpoint_every) == (9, 5, 100)
    assert (config.student, config.teacher) == ("s", "other")
    assert config.eval.temperatures == (0.0, 0.7)


def test_the_recipe_may_stand_after_the_options(recipe: str) -> None:
    assert cli.train_config(["--train.steps", "9", recipe]).train.batch_size == 5


def test_an_option_can_restore_a_default_over_the_recipe(recipe: str) -> None:
    assert cli.train_config([recipe, "--train.batch-size", "32"]).train.batch_size == 32


@pytest.mark.parametrize("spelling", ["--train.batch-size", "--train.batch_size"])
def test_both_spellings(spelling: str) -> None:
    assert cli.train_config([*MODELS, spelling, "3"]).train.batch_size == 3


def test_flags_tuples_none_and_nested_sections() -> None:
    config = cli.train_config(
        MODELS
        + shlex.split("--resume --log.no-progress --train.clip-norm None --train.betas 0.8 0.9 --log.trackers wandb")
        + shlex.split("--student-model.lora.target-modules q_proj v_proj")
    )
    assert config.resume
    assert not config.log.progress
    assert config.train.clip_norm is None
    assert config.train.betas == (0.8, 0.9)
    assert config.student_model.lora.target_modules == ("q_proj", "v_proj")
    assert config.log.trackers == ("wandb",)


def test_mappings_are_given_key_by_key_and_join_those_of_the_recipe(recipe: str) -> None:
    options = ["--task.options.prompt-column", "question", "--task.options", "limit", "3", "shots", "8"]
    config = cli.train_config([recipe, *options, "--teacher_model.quantization.load_in_4bit=true"])
    assert config.task.options == {"shots": 8, "split": "main", "prompt_column": "question", "limit": 3}
    assert config.teacher_model.quantization == {"load_in_4bit": True}


@pytest.mark.parametrize("options", [["--task.options.a"], ["--task.options", "a"], ["--task.options", "--resume"]])
def test_a_mapping_name_without_a_value(options: list[str]) -> None:
    with pytest.raises(UserError, match="needs a value for every name"):
        cli.train_config([*MODELS, *options])


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["trian"], "unknown command 'trian': did you mean 'train'?"),
        (["train"], "no student given: set --student"),
        (["train", *MODELS, "--train.steps", "0"], "train.steps: saw 0, needs greater than or equal to 1"),
        (["train", *MODELS, "--divergence", "jsd(1.0)"], "outside (0, 1)"),
        (["train", *MODELS, "--train.steps", "five"], "train.steps: saw 'five', needs a valid integer\n"),
        (["train", *MODELS, "--train.clip-norm", "x"], "train.clip_norm: saw 'x', needs a valid number\n"),
        (["train", *MODELS, "--train.betas", "0.8", "y"], "train.betas: saw 'y', needs a valid number\n"),
        (["quickstart", "--steps", "0"], "steps: saw 0, needs greater than or equal to 1"),
        (["train", "no-such.yaml"], "cannot read the recipe no-such.yaml"),
        (["train", "--student", "s", "--log.report", "False"], "the value of a switch: those have none, write"),
    ],
)
def test_wrong_input_is_one_message_and_status_2(
    argv: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(argv) == 2
    output = capsys.readouterr()
    assert message in output.err
    assert "Traceback" not in output.err
    assert output.out == ""


def test_unknown_option_names_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        cli.main(["train", *MODELS, "--train.step", "5"])
    assert left.value.code == 2
    assert "--train.steps" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["train", *MODELS, "--train.lr", "5"], "unknown option --train.lr; did you mean --train.learning-rate?"),
        (["train", *MODELS, "--lr=5"], "unknown option --lr; did you mean --train.learning-rate?"),
        (["eval", "m", "--mnt", "5"], "unknown option --mnt; did you mean --max-new-tokens?"),
        (["compare", "--base.train.bs", "5"], "unknown option --base.train.bs; did you mean --base.train.batch-size?"),
    ],
)
def test_initials_lead_to_the_option(argv: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(argv) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flag", "meant"),
    [
        ("--task.option.metric", "--task.options.metric"),
        ("--task.option", "--task.options"),
        ("--teacher_models.quantization.load_in_8bit", "--teacher-model.quantization.load_in_8bit"),
    ],
)
def test_a_misspelt_mapping_leads_to_it(flag: str, meant: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["train", *MODELS, flag, "x"]) == 2
    assert f"unknown option {flag}; did you mean {meant}?" in capsys.readouterr().err


def test_no_switch_is_taken_for_a_misspelt_mapping() -> None:
    switches = [key for key, info in config_io.keys().items() if info.annotation is bool]
    assert "log.report" in switches
    for key in switches:
        section, _, name = key.rpartition(".")
        for switch in (name, f"no_{name}"):
            cli.train_config([*MODELS, f"--{section}.{switch}" if section else f"--{switch}"])


def test_unknown_key_in_the_recipe_names_the_nearest(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text("train: {step: 5}\n")
    assert cli.main(["train", str(path)]) == 2
    assert "unknown key train.step; did you mean train.steps?" in capsys.readouterr().err


def test_help_comes_from_the_configuration_with_the_recipe_as_default(
    recipe: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as left:
        cli.main(["train", recipe, "--help"])
    assert left.value.code == 0
    text = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "--train.steps INT Optimiser steps. (default: 7)" in text
    assert "task.options" in text
    assert "Options override the keys of the recipe." in text
    assert "Also log to these. (default: empty)" in text


def test_help_breaks_lines_at_the_width_of_the_terminal_and_not_where_the_source_does(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit):
        cli.main(["train", "--help"])
    lines = [line.strip("│ ") for line in capsys.readouterr().out.splitlines()]
    assert "skew_forward_kl(0.1), adaptive_kl(0.5), ...; None: the method's." in lines


@pytest.mark.parametrize(
    ("raised", "status"),
    [
        (UserError("no [mem] left"), 2),
        (Interrupted("stopped after step 3", signal.SIGTERM), 143),
        (Interrupted("stopped after step 3", signal.SIGINT), 130),
        (KeyboardInterrupt(), 130),
    ],
)
def test_exit_status(
    raised: BaseException, status: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def command(argv: Any) -> None:
        raise raised

    monkeypatch.setitem(cli.COMMANDS, "train", command)
    assert cli.main(["train"]) == status
    assert str(raised) in capsys.readouterr().err


def test_version_and_usage(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"{__version__}\n"
    assert cli.main([]) == 0
    usage = capsys.readouterr().out
    assert [command for command in cli.COMMANDS if f"tutelage {command} " not in usage] == []


def test_the_command_line_starts_without_torch() -> None:
    code = "import sys, tutelage.cli; tutelage.cli.main(['--help']); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, capture_output=True).returncode == 0


def test_eval_options_become_a_request(monkeypatch: pytest.MonkeyPatch) -> None:
    from tutelage.eval import request

    seen: list[request.EvalRequest] = []
    monkeypatch.setattr(request, "run", seen.append)
    options = "folder --task.name jsonl --task.data x.jsonl --task.options.target answer --samples-per-prompt 8 --temperatures 0 0.7"
    assert (
        cli.main(["eval", *shlex.split(options), "--teacher", "t", "--output", "out", "--harness", "mmlu", "bbh"]) == 0
    )
    asked = seen[0]
    assert (asked.model, asked.teacher, asked.split, asked.output) == ("folder", "t", "test", Path("out"))
    assert (asked.task.name, asked.task.data, asked.task.options) == ("jsonl", "x.jsonl", {"target": "answer"})
    assert (asked.samples_per_prompt, asked.temperatures, asked.harness) == (8, (0.0, 0.7), ("mmlu", "bbh"))


def test_eval_needs_a_model_and_checks_its_options(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        cli.main(["eval", "--limit", "5"])
    assert left.value.code == 2
    assert "MODEL" in capsys.readouterr().err
    assert cli.main(["eval", "folder", "--limit", "0"]) == 2
    assert "limit: saw 0, needs greater than or equal to 1" in capsys.readouterr().err


def test_quickstart_options_reach_it(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[dict[str, object]] = []
    monkeypatch.setattr(quickstart, "main", lambda **options: seen.append(options))
    assert cli.main(["quickstart"]) == 0
    assert cli.main(["quickstart", "--seed", "3", "--steps", "20", "--output", "out"]) == 0
    assert seen == [
        {"output": Path("runs/quickstart"), "seed": 0, "settings": quickstart.Settings()},
        {"output": Path("out"), "seed": 3, "settings": quickstart.Settings(steps=20)},
    ]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("translate English to German: ", "translate English to German: "),  # no YAML mapping
        ("", ""),
        ("no", "no"),
        ("a: b: c", "a: b: c"),
        ("null", None),
        ("true", True),
        ("3", 3),
        ("0.05", 0.05),
        ("[2, 4]", [2, 4]),
    ],
)
def test_values_of_mappings(text: str, value: object) -> None:
    config = cli.train_config(["--student", "s", "--teacher", "t", "--task.options.key", text])
    assert config.task.options == {"key": value}


def test_report_draws_the_runs_it_is_given(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["report", str(tmp_path / "none")]) == 2
    assert "is no folder; name the folder a run was written to" in capsys.readouterr().err


def test_compare_needs_a_recipe_that_can_be_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["compare"]) == 2
    asked = capsys.readouterr().err
    assert "needs a recipe, such as recipes/compare/arithmetic.yaml" in asked
    assert (Path(__file__).parents[1] / "recipes/compare/arithmetic.yaml").is_file()
    assert cli.main(["compare", str(tmp_path / "none.yaml")]) == 2
    assert "cannot read the recipe" in capsys.readouterr().err


def test_compare_options_replace_keys_of_the_recipe(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    seen: dict[str, Any] = {}

    class Done:
        exit_code = 1

    def compare(recipe: Path, *, options: dict[str, object]) -> Done:
        seen.update(recipe=recipe, options=options)
        return Done()

    monkeypatch.setattr("tutelage.compare.compare", compare)
    path = tmp_path / "recipe.yaml"
    path.write_text("base: {student: s, teacher: t}\nmethods:\n  - {name: KD, method: supervised_kd}\nseeds: [1]\n")
    with pytest.raises(SystemExit) as ended:
        cli.main(["compare", str(path), "--seeds", "4", "5", "--base.task.data", "d"])
    assert ended.value.code == 1
    assert seen["recipe"] == path
    assert list(seen["options"]["seeds"]) == [4, 5]
    assert seen["options"]["base"]["task"]["data"] == "d"
