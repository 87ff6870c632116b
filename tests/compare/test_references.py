"""Initial students, teachers, and the rewards of a comparison."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.compare.conftest import Worker, rows_of
from tutelage.compare.cell import Job
from tutelage.compare.comparison import ComparisonResult

Run = Callable[..., ComparisonResult]


def rewarded(alpha: float, reward: str = "accuracy") -> dict[str, Any]:
    return {"name": f"alpha {alpha}", "method": "rl_gkd", "rl": {"reward": reward, "alpha": alpha}}


def test_the_reward_stands_beside_the_metric(run_comparison: Run, tmp_path: Path) -> None:
    worker, printed = Worker(lambda job: 30.0 + 10 * job.config.seed + 40 * job.config.rl.alpha), io.StringIO()
    kd = {"name": "kd", "method": "supervised_kd"}
    run_comparison(worker, printed, methods=[rewarded(0.0), rewarded(0.5), kd])
    page = (tmp_path / "compare" / "results.md").read_text()
    table = page.split("**Reward, on the test split")[1].split("**")[1]
    # By hand: the worker's reward is 1 - metric / 100; Student's t with one degree of freedom is 12.706.
    assert [line.split(" | ") for line in table.split("\n\n")[1].splitlines()[2:]] == [
        ["| alpha 0.0", "greedy", "0.650 [0.015, 1.285]", "35.0 [-28.5, 98.5]", "2 |"],
        ["| alpha 0.5", "greedy", "0.450 [-0.185, 1.085]", "55.0 [-8.5, 118.5]", "2 |"],
        ["| initial student", "greedy", "0.900 [0.650, 1.150]", "10.0 [9.0, 11.0]", "– |"],
        ["| teacher", "greedy", "0.100 [-0.150, 0.350]", "90.0 [89.0, 91.0]", "– |"],
    ]
    assert "Reward, on the test split" in printed.getvalue()
    rows = [row for row in rows_of(tmp_path / "compare" / "runs.csv") if row["metric"] == "reward"]
    assert [(row["method"], float(row["value"])) for row in rows] == [
        ("initial student", 0.9), ("teacher", pytest.approx(0.1)), ("alpha 0.0", 0.7), ("alpha 0.0", 0.6), ("alpha 0.5", 0.5),
        ("alpha 0.5", 0.4),
    ]  # fmt: skip


def test_references_are_rewarded_by_what_all_methods_share(run_comparison: Run, tmp_path: Path) -> None:
    def tested(*methods: dict[str, Any]) -> tuple[list[str], list[str]]:
        worker = Worker()
        run_comparison(worker, methods=list(methods), seeds=[0])
        rows = [row for row in rows_of(tmp_path / "compare" / "runs.csv") if row["metric"] == "reward"]
        return [label for label in worker.tested if "seed" not in label], [row["method"] for row in rows]

    assert tested(rewarded(0.5)) == (["initial student", "teacher"], ["initial student", "teacher", "alpha 0.5"])
    # Tested again: by another reward, or without one where two methods on one task have different ones.
    other = rewarded(0.25, "tests.compare.conftest:half")
    assert tested(other) == (["initial student", "teacher"], ["initial student", "teacher", "alpha 0.25"])
    assert tested(rewarded(0.5), other) == (["initial student", "teacher"], ["alpha 0.5", "alpha 0.25"])
    page = (tmp_path / "compare" / "results.md").read_text()
    assert "| alpha 0.25, by tests.compare.conftest:half | greedy |" in page
    assert "- Where methods have several rewards on one task, models that were not trained have none." in page
    assert tested(rewarded(0.5)) == ([], ["initial student", "teacher", "alpha 0.5"])
    assert "several rewards" not in (tmp_path / "compare" / "results.md").read_text()


def test_references_on_another_task_have_no_reward(run_comparison: Run) -> None:
    other = {"name": "kd", "method": "supervised_kd", "task.options.level": "medium"}
    rewards: dict[str, str | None] = {}

    class Noting(Worker):
        def __call__(self, job: Job) -> None:
            if job.model != "trained":
                rewards[f"{job.model}, {job.config.task.options['level']}"] = job.config.rl.reward
            super().__call__(job)

    run_comparison(Noting(), methods=[rewarded(0.5), other], seeds=[0])
    assert rewards == {
        "initial, easy": "accuracy", "teacher, easy": "accuracy", "initial, medium": None, "teacher, medium": None,
    }  # fmt: skip


def test_a_run_of_a_version_without_rewards_is_missed_in_their_table(run_comparison: Run, tmp_path: Path) -> None:
    run_comparison(Worker(), methods=[rewarded(0.0), rewarded(0.5)], seeds=[0])
    (first,) = (
        path
        for path in (tmp_path / "compare" / "runs").glob("*/test.json")
        if json.loads(path.with_name("record.json").read_text())["config"]["rl"]["alpha"] == 0.0
    )
    content = json.loads(first.read_text())
    content["scores"] = [score for score in content["scores"] if score["metric"] != "reward"]
    first.write_text(json.dumps(content))
    again = Worker()
    run_comparison(again, methods=[rewarded(0.0), rewarded(0.5)], seeds=[0])
    assert again.trained == again.tested == []
    page = (tmp_path / "compare" / "results.md").read_text()
    assert "- alpha 0.0 has no reward on the test split: a run of an earlier version did not measure it." in page
    assert "| alpha 0.5 | greedy | 0.500 | 50.0 | 1 |" in page
