from __future__ import annotations

import io
import json
import sys
import time
from pathlib import Path

import pytest
from rich.console import Console

from tutelage.errors import UserError
from tutelage.train import config_io, metrics

CONFIG = config_io.build({"student": "s", "teacher": "t"})


def steps(path: Path) -> list[int]:
    return [json.loads(line)["step"] for line in path.read_text().splitlines()]


def written(path: Path, last: int) -> Path:
    with metrics.MetricsWriter(path, CONFIG) as writer:
        for step in range(1, last + 1):
            writer.write({"step": step, "loss": 1.0 / step})
    return path


def test_a_record_is_on_disk_once_written(tmp_path: Path) -> None:
    writer = metrics.MetricsWriter(tmp_path / "metrics.jsonl", CONFIG)
    writer.write({"step": 1, "loss": 0.5, "seconds": {"rollout": 2.0}})
    assert metrics.read_metrics(tmp_path / "metrics.jsonl") == [{"step": 1, "loss": 0.5, "seconds": {"rollout": 2.0}}]
    writer.close()


def test_nothing_but_json_is_written(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    with metrics.MetricsWriter(path, CONFIG) as writer:
        writer.write(
            {"step": 1, "loss": float("nan"), "finish": {"stop": float("inf")}, "lengths": [float("-inf"), 2.0]}
        )
    assert path.read_text() == '{"step": 1, "loss": null, "finish": {"stop": null}, "lengths": [null, 2.0]}\n'


def test_resuming_drops_steps_after_the_checkpoint_and_a_torn_line(tmp_path: Path) -> None:
    path = written(tmp_path / "metrics.jsonl", 5)
    with path.open("a") as file:
        file.write('{"step": 6, "lo')
    with metrics.MetricsWriter(path, CONFIG, start_step=3) as writer:
        writer.write({"step": 4, "loss": 9.0})
    assert steps(path) == [1, 2, 3, 4]
    assert metrics.read_metrics(path)[-1]["loss"] == 9.0


def test_a_fresh_run_starts_the_file_afresh(tmp_path: Path) -> None:
    path = written(tmp_path / "metrics.jsonl", 3)
    with metrics.MetricsWriter(path, CONFIG) as writer:
        writer.write({"step": 1})
    assert steps(path) == [1]


def test_a_damaged_line_before_the_last_is_named(tmp_path: Path) -> None:
    path = written(tmp_path / "metrics.jsonl", 1)
    with path.open("a") as file:
        file.write('{"step": 2, "lo\n{"step": 3}\n')
    with pytest.raises(UserError, match=r"metrics\.jsonl, line 2: not valid JSON"):
        metrics.MetricsWriter(path, CONFIG, start_step=3)


def test_a_missing_tracker_names_its_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match=r'pip install "tutelage\[wandb\]"'):
        metrics.MetricsWriter(tmp_path / "metrics.jsonl", CONFIG, ("wandb",))


def test_trackers_get_flat_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[str, object]] = []

    class Wandb:
        @staticmethod
        def init(**options: object) -> None:
            seen.append(("init", options["project"]))

        @staticmethod
        def log(record: dict[str, float], step: int) -> None:
            seen.append((f"log {step}", record))

        @staticmethod
        def finish() -> None:
            seen.append(("finish", None))

    monkeypatch.setitem(sys.modules, "wandb", Wandb)
    with metrics.MetricsWriter(tmp_path / "metrics.jsonl", CONFIG, ("wandb",)) as writer:
        writer.write({"step": 1, "loss": 0.5, "note": "text", "seconds": {"rollout": 2}})
    assert seen == [
        ("init", "tutelage"),
        ("log 1", {"step": 1.0, "loss": 0.5, "seconds/rollout": 2.0}),
        ("finish", None),
    ]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


def test_stopwatch_accumulates_by_phase(clock: list[float]) -> None:
    watch = metrics.Stopwatch()
    for phase, seconds in (("rollout", 3.0), ("update", 1.0), ("rollout", 4.0)):
        with watch.phase(phase):
            clock[0] += seconds
        clock[0] += 100.0  # between phases: nobody's
    assert watch.seconds == {"rollout": 7.0, "update": 1.0}
    assert watch.shares() == {"rollout": 0.875, "update": 0.125}
    watch.add("update", 7.0)
    watch.add("reward", 1.0)
    assert watch.seconds == {"rollout": 7.0, "update": 8.0, "reward": 1.0}
    assert watch.total == 16.0


def test_stopwatch_counts_a_phase_that_raises(clock: list[float]) -> None:
    watch = metrics.Stopwatch()

    def fail() -> None:
        with watch.phase("rollout"):
            clock[0] += 2.0
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert watch.seconds == {"rollout": 2.0}


def test_stopwatch_refuses_nesting() -> None:
    watch = metrics.Stopwatch()
    nested = watch.phase("teacher")
    with watch.phase("rollout"), pytest.raises(RuntimeError, match="'teacher' started inside phase 'rollout'"):
        nested.__enter__()


def test_stopwatch_without_phases_has_no_shares() -> None:
    assert metrics.Stopwatch().shares() == {}


def test_progress_prints_plain_lines_where_there_is_no_terminal(clock: list[float]) -> None:
    watch = metrics.Stopwatch()
    output = io.StringIO()
    with metrics.Progress(30, watch, console=Console(file=output)) as progress:
        for step in range(1, 31):
            with watch.phase("rollout"):
                clock[0] += 3.0
            with watch.phase("update"):
                clock[0] += 1.0
            progress.update(step, loss=2.0 / step, tokens=400)
    lines = output.getvalue().splitlines()
    # 4 seconds a step: a line at the first step, then at most every 10 seconds, then at the last.
    assert [line.split()[1] for line in lines] == ["1/30", *(f"{n}/30" for n in range(4, 30, 3)), "30/30"]
    assert lines[0] == "step 1/30  loss 2.0000  100 tokens/s  rollout 75% update 25%  1 min 56 s left"
    assert lines[-1].endswith("update 25%")


def test_the_time_left_is_by_the_steps_of_this_process(clock: list[float]) -> None:
    output = io.StringIO()
    with metrics.Progress(40, metrics.Stopwatch(), done=30, console=Console(file=output)) as progress:
        clock[0] += 6.0
        progress.update(32, loss=1.0, tokens=1)
    assert output.getvalue().endswith("  24 s left\n")


@pytest.mark.parametrize(
    ("seconds", "words"), [(0.4, "0 s"), (59.6, "1 min 0 s"), (80.0, "1 min 20 s"), (7530.0, "2 h 5 min")]
)
def test_a_time_in_words(seconds: float, words: str) -> None:
    assert metrics.in_words(seconds) == words


def test_progress_can_be_silent() -> None:
    output = io.StringIO()
    with metrics.Progress(
        2, metrics.Stopwatch(), show=False, console=Console(file=output, force_terminal=True)
    ) as progress:
        progress.update(1, loss=1.0, tokens=1)
    assert output.getvalue() == ""


def test_progress_bar_shows_loss_and_speed(clock: list[float]) -> None:
    watch = metrics.Stopwatch()
    output = io.StringIO()
    with metrics.Progress(8, watch, done=5, console=Console(file=output, force_terminal=True, width=120)) as progress:
        with watch.phase("update"):
            clock[0] += 2.0
        progress.update(6, loss=0.25, tokens=500)
    assert "6/8" in output.getvalue()
    assert "loss 0.2500  250 tokens/s  update 100%" in output.getvalue()


def test_progress_shows_the_reward(clock: list[float]) -> None:
    output = io.StringIO()
    with metrics.Progress(9, metrics.Stopwatch(), console=Console(file=output, width=120)) as progress:
        progress.update(1, loss=-0.5, tokens=500, reward=0.75)
    assert output.getvalue().startswith("step 1/9  loss -0.5000  reward 0.750  ")


@pytest.mark.parametrize(
    ("terminal", "show", "printed"), [(False, True, "loading [a/b]\n"), (False, False, ""), (True, True, "")]
)
def test_silent_work_is_announced_where_there_is_no_bar(terminal: bool, show: bool, printed: str) -> None:
    output = io.StringIO()
    metrics.announce("loading [a/b]", show, Console(file=output, force_terminal=terminal))
    assert output.getvalue() == printed


def test_closing_table() -> None:
    table = metrics.closing_table(
        {
            "steps": 200,
            "loss": (1.5, 0.25),
            "reward": (0.125, 0.75),
            "forward_kl": (2.0, 0.5),
            "agreement": (0.5, 0.875),
            "tokens": 12_000,
            "seconds": {"rollout": 6.0, "update": 2.0},
            "evaluations": {"accuracy, greedy": ({"value": 10.0, "low": 8.0, "high": 12.0}, None)},
            "rewards": {"reward, greedy": (None, {"value": 0.5, "low": 0.25, "high": 0.625})},
            "examples": 1_200,
        }
    )
    output = io.StringIO()
    Console(file=output, width=100).print(table)
    text = output.getvalue()
    cells = [[cell.strip() for cell in line.split("│")[1:-1]] for line in text.splitlines() if line.startswith("│")]
    assert cells == [
        ["loss", "1.5000", "0.2500"],
        ["reward of the step's sequences", "0.1250", "0.7500"],
        ["forward KL, nats", "2.0000", "0.5000"],
        ["agreement with the teacher", "50.0%", "87.5%"],
        ["accuracy, greedy", "10.0 [8.0, 12.0]", "-"],
        ["reward, greedy", "-", "0.500 [0.250, 0.625]"],
        ["tokens", "12,000", ""],
        ["tokens/s of training", "1,500", ""],
        ["seconds, rollout", "6.0", "75%"],
        ["seconds, update", "2.0", "25%"],
    ]
    headers = [[cell.strip() for cell in line.split("┃")[1:-1]] for line in text.splitlines() if "┃" in line]
    assert headers == [["", "first", "last"], ["", "total", "share"]]
    assert "200 steps" in text
    assert " ".join(text.split()).count("in brackets: 95% intervals over n = 1,200 examples") == 1
