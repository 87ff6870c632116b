"""What a run evaluates before, during and after training, and the closing table of it."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from tests.sums import Sums, live, sums_config
from tutelage import run
from tutelage.errors import UserError
from tutelage.eval.evaluate import evaluate
from tutelage.models import load
from tutelage.tasks.base import Example
from tutelage.train.config import Config


@pytest.fixture
def make_config(tmp_path: Path) -> Callable[..., Config]:
    """`sums_config` in the test's own folder."""
    return partial(sums_config, tmp_path / "run")


def test_without_a_validation_split_training_goes_on(
    make_config: Callable[..., Config], caplog: pytest.LogCaptureFixture
) -> None:
    config = make_config(**{"eval.final": "auto"})
    result = run.run(config, student=live(), teacher=live(seed=1), task=Sums(("train",)))
    assert result.before is result.after is None
    assert "no evaluation before and after training: the sums have no validation split" in caplog.text


def test_a_bad_validation_split_is_no_missing_one(make_config: Callable[..., Config]) -> None:
    class Broken(Sums):
        def examples(self, split: str) -> Sequence[Example]:
            if split == "validation":
                raise UserError("validation.jsonl, line 3: not valid JSON")
            return super().examples(split)

    config = make_config(**{"eval.final": "auto"})
    with pytest.raises(UserError, match=r"validation\.jsonl, line 3"):
        run.run(config, student=live(), teacher=live(seed=1), task=Broken())
    assert not (config.output / "run.json").exists()  # found before anything was written or overwritten


def test_evaluations_during_training_need_a_split_before_it(make_config: Callable[..., Config]) -> None:
    config = make_config(**{"eval.final": "auto", "eval.every": 2})
    with pytest.raises(UserError, match=r"eval\.every=2 asks for evaluations .* no split to evaluate"):
        run.run(config, student=live(), teacher=live(seed=1), task=Sums(("train",)))
    assert not (config.output / "metrics.jsonl").exists()


@pytest.mark.parametrize("short", ["student", "teacher", "other teacher"])
def test_held_out_prompts_must_fit_the_positions_of_all_models(
    short: str, make_config: Callable[..., Config], tmp_path: Path
) -> None:
    class Longer(Sums):
        def examples(self, split: str) -> Sequence[Example]:
            return [{"a": 1000, "b": 0}] if split == "validation" else super().examples(split)

    models = {name: live(seed=seed) for seed, name in enumerate(("student", "teacher", "other teacher"))}
    for name, model in models.items():
        model.name = name
        model.base.config.max_position_embeddings = 97 if name == short else 98  # 8 of the prompt, 90 of the completion
    others = {}
    if short == "other teacher":
        load.save(models[short], tmp_path / short)
        others = {"other_teachers": [str(tmp_path / short)]}
    config = make_config(**{"eval.final": "validation", "rollout.max_new_tokens": 90}, **others)
    with pytest.raises(UserError, match=rf"{short} has 97 positions, but it is to read prompts of up to 8 and"):
        run.run(config, student=models["student"], teacher=models["teacher"], task=Longer())
    assert not (config.output / "metrics.jsonl").exists()


def test_evaluations_during_training(make_config: Callable[..., Config]) -> None:
    changes = {"final": "validation", "every": 1, "temperatures": [0.0], "bootstrap": 10, "limit": 4}
    result = run.run(make_config(eval=changes), student=live(), teacher=live(seed=1), task=Sums())
    assert result.after is not None
    assert result.records[-1]["evaluation"] == {"accuracy greedy": result.after.rows[0].value}


def test_several_samples_a_prompt_before_and_after_training_and_not_during_it(
    make_config: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []

    def counted(*args: Any, **options: Any) -> Any:
        asked.append(options["samples_per_prompt"])
        return evaluate(*args, **options)

    monkeypatch.setattr(run, "evaluate", counted)
    console = Console(record=True, width=200, file=io.StringIO())
    keys = {
        "final": "validation",
        "every": 1,
        "temperatures": [0.5, 0.0, 1.0],
        "samples_per_prompt": 3,
        "bootstrap": 0,
        "marks": 0,
    }
    config = make_config(eval=keys, log={"samples": 2})
    found = run.run(config, student=live(), teacher=live(seed=1), task=Sums(), console=console)
    assert asked == [3, 1, 1, 3]
    for evaluation in (found.before, found.after):
        assert evaluation is not None
        assert [row.samples_per_prompt for row in evaluation.rows] == [3, 1, 3]
        assert [row.self_bleu is None for row in evaluation.rows] == [False, True, False]
        greedy = [completion for completion in evaluation.completions if completion.decoding == "greedy"]
        assert [completion.reference for completion in greedy] == [" 0", " 1", " 1", " 2", " 2", " 3"]
    shown = console.export_text()
    assert ("0 + 0 =" in shown, "0 + 1 =" in shown) == (True, True)  # two examples, not two samples of the first
    page = (config.output / "report.html").read_text(encoding="utf-8")
    assert "<h3>Self-BLEU against temperature</h3>" in page
    assert "held-out examples, T=0.5 decoding, beside the reference." in page


def test_evaluations_are_announced_and_their_number_stands_under_the_table(
    make_config: Callable[..., Config], capsys: pytest.CaptureFixture[str]
) -> None:
    evaluation = {"final": "validation", "temperatures": [0.0, 1.0], "bootstrap": 10, "limit": 4, "marks": 0}
    console = Console(record=True, width=200, file=io.StringIO())
    config = make_config(eval=evaluation, log={"progress": True, "report": False})
    run.run(config, student=live(), teacher=live(seed=1), task=Sums(), console=console)
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("evaluating, ")]
    assert lines == [f"evaluating, {when}: 4 examples x 2 decodings" for when in ("before", "after")]
    assert "95% intervals over n = 4 examples" in " ".join(console.export_text().split())


def test_the_closing_table_and_the_samples(make_config: Callable[..., Config]) -> None:
    console = Console(record=True, width=200)
    evaluation = {"final": "validation", "temperatures": [0.0], "bootstrap": 10}
    config = make_config(eval=evaluation, log={"samples": 2})
    result = run.run(config, student=live(), teacher=live(seed=1), task=Sums(), console=console)
    shown = console.export_text()
    assert "0 + 0 =" in shown
    assert "0 + 1 =" in shown
    assert "1 + 0 =" not in shown
    assert f"student: {result.folder}\n" in shown
    assert math.isfinite(result.records[-1]["loss"])


def cells(console: Console) -> dict[str, list[str]]:
    """The closing table: first column -> the others."""
    lines = [line.split("│") for line in console.export_text().splitlines() if line.count("│") == 4]
    return {line[1].strip(): [cell.strip() for cell in line[2:4]] for line in lines}


def test_the_closing_table_of_a_resumed_run_is_of_the_whole_run(
    make_config: Callable[..., Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes: dict[str, Any] = {
        "train": {"steps": 4, "checkpoint_every": 2},
        "eval": {"final": "validation", "temperatures": [0.0], "bootstrap": 10},
    }
    undisturbed, resumed = (Console(record=True, width=200, file=io.StringIO()) for _ in range(2))

    def start(console: Console, output: str, **more: Any) -> run.RunResult:
        config = make_config(output=str(tmp_path / output), **changes, **more)
        return run.run(config, student=live(), teacher=live(seed=1), task=Sums(), console=console)

    whole = start(undisturbed, "whole")
    with monkeypatch.context() as patched:
        original = run.loop.save

        def save_once(parts: Any, step: int) -> None:
            original(parts, step)
            raise RuntimeError("killed")

        patched.setattr(run.loop, "save", save_once)
        with pytest.raises(RuntimeError, match="killed"):
            start(resumed, "killed")
    result = start(resumed, "killed", resume=True)
    assert [record["step"] for record in result.records] == [3, 4]
    assert whole.before is not None
    assert result.before is not None
    assert result.before.completions == whole.before.completions
    expected, table = cells(undisturbed), cells(resumed)
    for row in ("loss", "forward KL, nats", "agreement with the teacher", "accuracy, greedy", "tokens"):
        assert table[row] == expected[row]
    again = Console(record=True, width=200, file=io.StringIO())
    start(again, "killed", resume=True)  # nothing is left to do
    assert cells(again)["loss"] == expected["loss"]


def test_another_evaluation_is_not_set_beside_the_earlier(
    make_config: Callable[..., Config], caplog: pytest.LogCaptureFixture
) -> None:
    evaluation = {"final": "validation", "temperatures": [0.0], "bootstrap": 10, "limit": 4}
    for changed, resume in (({}, False), ({"limit": 3, "temperatures": [1.0], "samples_per_prompt": 2}, True)):
        config = make_config(eval={**evaluation, **changed}, resume=resume)
        result = run.run(config, student=live(), teacher=live(seed=1), task=Sums())
    assert result.before is None
    assert result.after is not None
    assert (
        "the evaluation before training had another eval.limit, eval.temperatures, eval.samples_per_prompt: the closing table leaves "
        "it out"
    ) in caplog.text


def test_an_evaluation_of_an_earlier_version_is_recalled_by_the_defaults_of_later_keys(
    make_config: Callable[..., Config],
) -> None:
    config = make_config(eval={"final": "validation", "bootstrap": 10, "limit": 4})
    first = run.run(config, student=live(), teacher=live(seed=1), task=Sums())
    path = config.output / "evaluation" / "before" / "results.json"
    content = json.loads(path.read_text())
    del content["config"]["eval"]["samples_per_prompt"]
    path.write_text(json.dumps(content))
    again = run.run(config.model_copy(update={"resume": True}), student=live(), teacher=live(seed=1), task=Sums())
    assert again.before == first.before
    assert again.before is not None


@pytest.mark.parametrize("measured", [True, False])
def test_the_distance_from_the_teacher_is_left_out_when_asked(
    measured: bool, make_config: Callable[..., Config]
) -> None:
    config = make_config(eval={"final": "validation", "teacher_divergence": measured, "bootstrap": 0})
    found = run.run(config, student=live(), teacher=live(seed=1), task=Sums(), console=Console(quiet=True))
    for evaluation in (found.before, found.after):
        assert evaluation is not None
        assert set(evaluation.divergence) == ({"greedy", "T=1", "references"} if measured else set())


def short(prompt: str, completion: str, reference: str | None, example: Example) -> float:
    """A reward that any text earns: 1 for an empty one."""
    return 1 / (1 + len(completion))


def test_the_reward_is_measured_on_held_out_examples_before_and_after(make_config: Callable[..., Config]) -> None:
    rl = {"reward": f"{__name__}:short", "alpha": 0.5}
    config = make_config(
        method="rl_gkd", rl=rl, **{"eval.final": "auto", "eval.every": 1, "rollout.samples_per_prompt": 3}
    )
    console = Console(file=io.StringIO(), width=160)
    result = run.run(config, student=live(), teacher=live(seed=1), task=Sums(), console=console)
    for evaluation in (result.before, result.after):
        assert evaluation is not None
        for row in evaluation.rows:
            written = [each for each in evaluation.completions if each.decoding == row.decoding]
            assert [each.reward for each in written] == [1 / (1 + len(each.text)) for each in written]
            assert row.reward is not None
            assert row.reward.value == pytest.approx(sum(each.reward or 0.0 for each in written) / len(written))
    printed = console.file.getvalue()  # type: ignore[attr-defined]
    lines = {line.split("│")[1].strip(): line for line in printed.splitlines() if line.startswith("│")}
    assert {"reward of the step's sequences", "reward, greedy", "reward, T=1"} <= lines.keys()
    assert result.after is not None
    reward = result.after.row("T=1").reward
    assert reward is not None
    assert f"{reward.value:.3f} [" in lines["reward, T=1"]
    records = [json.loads(line) for line in (config.output / "metrics.jsonl").read_text().splitlines()]
    assert [sorted(record["evaluation"]) for record in records] == [
        ["accuracy T=1", "accuracy greedy", "reward T=1", "reward greedy"]
    ] * 2
    assert records[-1]["evaluation"]["reward T=1"] == pytest.approx(reward.value)


def trained_only(prompt: str, completion: str, reference: str | None, example: Example) -> float:
    assert "held" not in example
    return 0.5


def test_held_out_examples_are_not_rewarded_where_nobody_asks(make_config: Callable[..., Config]) -> None:
    class Marked(Sums):
        def examples(self, split: str) -> Sequence[Example]:
            held = {"held": True} if split == "validation" else {}
            return [{**example, **held} for example in super().examples(split)]

    rl = {"reward": f"{__name__}:trained_only", "alpha": 0.5}
    keys = {"method": "rl_gkd", "rl": rl, "eval.final": "auto", "rollout.samples_per_prompt": 3}
    with pytest.raises(UserError, match=r"the reward .*:trained_only raised AssertionError"):
        run.run(make_config(**keys), student=live(), teacher=live(seed=1), task=Marked())
    config = make_config(**keys, **{"eval.reward": False, "overwrite": True})
    result = run.run(config, student=live(), teacher=live(seed=1), task=Marked())
    assert result.after is not None
    assert [row.reward for row in result.after.rows] == [None, None]
    assert result.records[-1]["reward"] == 0.5
