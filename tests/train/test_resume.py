"""A run that is killed, anywhere, and resumed is the undisturbed run: the same weights to the bit, the same metrics."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.train.conftest import RunServer, outcome, raw_config
from tutelage.rollout.native import NativeEngine
from tutelage.train.config import Config
from tutelage.train.loop import train
from tutelage.train.metrics import read_metrics
from tutelage.train.optim import Optimizer
from tutelage.train.setup import prepare

RUNS: dict[str, dict[str, Any]] = {
    "gkd-llama": {"family": "llama", "student_data_fraction": 0.5, "student_model.dropout": 0.2},
    "gkd-t5": {"family": "t5", "student_data_fraction": 0.5, "student_model.dropout": 0.2, "train.optimizer": "adafactor"},
    "seqkd-llama": {"family": "llama", "method": "seqkd", "student_model": {"dropout": 0.2, "dtype": "bfloat16"}},
    "rl-llama": {
        "family": "llama", "method": "rl_gkd", "rl": {"reward": "tests.train.reward_functions:digits", "baseline": "group"},
        "rollout": {"samples_per_prompt": 2}, "student_model.dropout": 0.2,
    },
    "distillm-llama": {
        "family": "llama", "method": "distillm", "student_data_fraction": 0.8, "fraction_unit": "sequence",
        "rollout": {"replay": 6, "replay_schedule": "constant", "importance_clip": 2}, "student_model.dropout": 0.2,
    },
    "minillm-t5": {"family": "t5", "method": "minillm", "student_model.dropout": 0.2},
    "gkd-mixed": {
        "family": "llama", "student_data_fraction": 0.5, "fraction_unit": "sequence", "fixed_data": "teacher",
        "student_model": {"init": "config", "lora": {"rank": 2, "dropout": 0.1}},
    },
}  # fmt: skip

# What is under way when the process dies: a function, and whether it has been called, has not, or is half done.
MOMENTS = {
    "a rollout": ("tutelage.rollout.native:NativeEngine.generate", "before"),
    "the rollout log": ("tutelage.rollout.log:RolloutLog.append", "torn"),
    "logged": ("tutelage.rollout.log:RolloutLog.append", "after"),
    "the update": ("tutelage.train.optim:Optimizer.step", "before"),
    "updated": ("tutelage.train.optim:Optimizer.step", "after"),
    "between steps": ("tutelage.train.metrics:MetricsWriter.write", "after"),
    "a checkpoint's state": ("torch:save", "torn"),
    "a checkpoint's name": (
        "tutelage.train.checkpoint:_sync_folder",
        "before",
    ),  # twice a checkpoint: before it, after it
    "pruning": ("shutil:rmtree", "before"),
    "restored": ("tutelage.train.checkpoint:Checkpoints.load", "after"),
    "the finished student": ("tutelage.models.load:save", "before"),
}

# Runs, each killed at every moment of its list in turn (at the call of that number, in that process) and resumed.
KILLS = [
    ("gkd-llama", [("restored", 1), ("logged", 1), ("a checkpoint's name", 1), ("updated", 4), ("pruning", 1)]),
    (
        "gkd-llama",
        [("the rollout log", 3), ("a checkpoint's name", 2), ("between steps", 2), ("the finished student", 1)],
    ),
    ("gkd-t5", [("a rollout", 2), ("the update", 3), ("a checkpoint's state", 1), ("the rollout log", 1)]),
    ("seqkd-llama", [("a rollout", 2), ("a checkpoint's state", 1), ("updated", 5), ("the rollout log", 2)]),
    ("rl-llama", [("the rollout log", 2), ("updated", 5), ("a checkpoint's state", 1)]),
    ("distillm-llama", [("the rollout log", 4), ("updated", 3), ("logged", 1)]),
    ("minillm-t5", [("the rollout log", 3), ("updated", 4), ("logged", 1)]),
    ("gkd-mixed", [("the rollout log", 2), ("between steps", 5), ("a checkpoint's state", 1), ("a rollout", 2)]),
]


@pytest.fixture(scope="module")
def undisturbed(models: Path, server: RunServer, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Any]:
    """The outcome of a run of `RUNS` that nothing happens to."""
    known: dict[str, Any] = {}

    def get(name: str) -> Any:
        if name not in known:
            output = tmp_path_factory.mktemp("undisturbed") / "run"
            ended = server.run(command(models, output, name))
            assert ended.status == 0, ended.printed
            known[name] = outcome(output)
            assert [record["step"] for record in known[name][1]] == list(range(1, 9))
        return known[name]

    return get


def command(models: Path, output: Path, name: str, *more: str) -> list[str]:
    recipe = output.parent / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(raw_config(models, output, **RUNS[name])))
    return ["train", str(recipe), *more]


def resumed(models: Path, output: Path, name: str, server: RunServer) -> Any:
    ended = server.run(command(models, output, name, "--resume"))
    assert ended.status == 0, ended.printed
    return outcome(output)


@pytest.mark.parametrize(
    ("name", "kills"), KILLS, ids=[f"{name}: {', '.join(moment for moment, _ in kills)}" for name, kills in KILLS]
)
def test_killed_again_and_again(
    name: str,
    kills: list[tuple[str, int]],
    models: Path,
    tmp_path: Path,
    server: RunServer,
    undisturbed: Callable[[str], Any],
) -> None:
    output = tmp_path / "run"
    for attempt, (moment, call) in enumerate(kills):
        target, when = MOMENTS[moment]
        stop = {"target": target, "when": when, "call": call, "signal": signal.SIGKILL}
        ended = server.run(command(models, output, name, *(["--resume"] if attempt else [])), stop)
        assert ended.status == -signal.SIGKILL, f"{moment}: {ended}"
        assert not (output / "model" / "model.safetensors").exists()
    assert resumed(models, output, name, server) == undisturbed(name)
    assert not list((output / "checkpoints").glob(".*"))


def test_killed_from_outside(
    models: Path, tmp_path: Path, server: RunServer, undisturbed: Callable[[str], Any]
) -> None:
    output = tmp_path / "run"

    def kill_after_two_records(child: int) -> None:
        wait_for_lines(output / "metrics.jsonl", 2)
        os.kill(child, signal.SIGKILL)

    ended = server.run(command(models, output, "gkd-llama"), while_running=kill_after_two_records)
    assert ended.status == -signal.SIGKILL, ended.printed
    assert resumed(models, output, "gkd-llama", server) == undisturbed("gkd-llama")


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_checkpoints_and_leaves(
    number: signal.Signals,
    status: int,
    models: Path,
    tmp_path: Path,
    server: RunServer,
    undisturbed: Callable[[str], Any],
) -> None:
    output = tmp_path / "run"
    stop = {"target": "tutelage.train.optim:Optimizer.step", "when": "before", "call": 2, "signal": number}
    ended = server.run(command(models, output, "gkd-llama"), stop)
    assert ended.status == status, ended.printed
    told = re.search(
        rf"^{number.name}: stopped after step 2, go on with: tutelage (.+) \(in Python: ", ended.printed, re.MULTILINE
    )
    assert told is not None, ended.printed
    assert [p.name for p in (output / "checkpoints").iterdir()] == ["step-00000002"]
    (output.parent / "recipe.yaml").unlink()  # what is told needs the run's folder alone
    ended = server.run(shlex.split(told[1]))
    assert ended.status == 0, ended.printed
    assert f"going on from step 2 of 8 in {output}" in ended.printed
    assert outcome(output) == undisturbed("gkd-llama")


def test_the_log_is_replayed_and_not_written_anew(models: Path, tmp_path: Path, server: RunServer) -> None:
    output = tmp_path / "run"
    stop = {"target": "tutelage.train.optim:Optimizer.step", "when": "after", "call": 5, "signal": signal.SIGKILL}
    server.run(command(models, output, "gkd-llama"), stop)
    log = output / "rollouts" / "rollouts.jsonl"
    ahead = log.read_bytes()
    assert [json.loads(line)["step"] for line in ahead.splitlines()] == [0, 1, 2, 3, 4]
    assert [p.name for p in (output / "checkpoints").iterdir()] == ["step-00000003"]
    log.write_bytes(ahead + b'{"step":5,"crc":12,"rollouts":[{"prompt_ids":[')
    resumed(models, output, "gkd-llama", server)
    assert log.read_bytes().startswith(ahead)
    lines = [json.loads(line) for line in log.read_bytes().splitlines()]
    assert [line["step"] for line in lines] == list(range(8))
    for record, line in zip(read_metrics(output / "metrics.jsonl"), lines, strict=True):
        assert record["seconds"]["rollout"] > line["seconds"] - 1e-9
        assert line["seconds"] > 0


class Killed(BaseException):
    """Stands for a signal that nothing catches."""


@pytest.mark.parametrize(
    "changes",
    [{}, {"method": "seqkd"}, {"seed": 1, "rollout": {"replay": 8, "replay_schedule": "constant"}}],
    ids=["student", "teacher", "replay"],
)
def test_steps_done_again_keep_the_seconds_of_their_rollouts(
    changes: dict[str, Any], make_config: Callable[..., Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a clock that nothing but writing moves, by a second a token: killed or not, a run takes the same seconds."""
    now = [0.0]
    generate, update = NativeEngine.generate, Optimizer.step

    def slow(*arguments: Any, **options: Any) -> Any:
        written = generate(*arguments, **options)
        now[0] += sum(len(rollout.completion_ids) for rollout in written)
        return written

    def killing(self: Optimizer, step: int, loss: Any) -> Any:
        if step == 4:  # behind the last checkpoint, of three steps: one record, and two steps of the rollout log
            raise Killed
        return update(self, step, loss)

    def seconds(config: Config) -> list[float]:
        train(prepare(config)[0], config)
        return [record["seconds"]["rollout"] for record in read_metrics(config.output / "metrics.jsonl")]

    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(NativeEngine, "generate", slow)
    expected = seconds(make_config(output=str(tmp_path / "undisturbed"), **changes))
    assert expected[3] + expected[4] > 0
    assert (min(expected) == 0) == bool(changes)  # the teacher writes a prompt once, the buffer costs nothing

    config = make_config(**changes)
    with monkeypatch.context() as patch:
        patch.setattr(Optimizer, "step", killing)
        with pytest.raises(Killed):
            train(prepare(config)[0], config)
    resuming = config.model_copy(update={"resume": True})
    assert seconds(resuming) == expected
    shutil.rmtree(config.output / "checkpoints")  # as a comparison leaves its runs: all is done again
    assert seconds(resuming) == expected


def test_resume_without_a_run_starts_one_and_says_so(
    models: Path, tmp_path: Path, server: RunServer, undisturbed: Callable[[str], Any]
) -> None:
    """So that the one command line of a preemptible job, killed before its first step too, always gets there."""
    output = tmp_path / "run"
    ended = server.run(command(models, output, "gkd-llama", "--resume"))
    assert ended.status == 0
    assert f"no run to resume in {output}: starting at step 0" in ended.printed
    assert outcome(output) == undisturbed("gkd-llama")
    ended = server.run(command(models, output, "gkd-llama", "--resume"))  # of a finished run: nothing changes
    assert ended.status == 0
    assert "no run to resume" not in ended.printed
    assert f"all 8 steps in {output} are done: only saving the student" in ended.printed
    assert outcome(output) == undisturbed("gkd-llama")


def wait_for_lines(path: Path, count: int) -> None:
    deadline = time.monotonic() + 120
    while not path.exists() or path.read_bytes().count(b"\n") < count:
        assert time.monotonic() < deadline, f"{path} did not reach {count} lines"
        time.sleep(0.002)
