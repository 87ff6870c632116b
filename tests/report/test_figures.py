import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.report.conftest import evaluation, mark_every_step, record, reevaluate, row, save_diverse, write_run
from tutelage.cli import train_config
from tutelage.eval.results import Row, save
from tutelage.eval.signals import Estimate
from tutelage.report import figures
from tutelage.report.collect import collect


def headings(found: list[figures.Figure]) -> list[str]:
    return [figure.heading for figure in found]


def test_metrics_without_a_value_have_no_chart_and_unknown_ones_come_last(run: Path) -> None:
    lines = [record(1, novelty=0.5), record(2, novelty=0.75)]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = figures.curve_figures(collect([run]))
    assert headings(found) == ["Loss", "Forward KL from the teacher", "Novelty"]  # reverse_kl is null throughout
    assert "novelty. gkd: first 0.5, last 0.75" in found[-1].chart


@pytest.mark.parametrize(
    "config",
    [
        {"method": "sft", "teacher": None},
        {"method": "seqkd"},
        {"divergence": "reverse_kl", "teacher_signal": "sampled"},
    ],
)
def test_agreement_is_drawn_where_it_is_with_a_teacher(config: dict[str, Any], tmp_path: Path, run: Path) -> None:
    other = write_run(tmp_path / "other", **config)
    lines = [record(i, agreement=i / 4) for i in (1, 2)]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    for line in lines:
        del line["forward_kl"]  # these record none: their agreement is with the tokens trained on
    (other / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert "Agreement" not in headings(figures.curve_figures(collect([other])))
    *_, agreement = figures.curve_figures(collect([other, run]))
    assert agreement.heading == "Agreement"
    assert "<desc>share of tokens. gkd: first 0.25, last 0.5, lowest 0.25, highest 0.5.</desc>" in agreement.chart


def test_the_reward_stands_behind_the_loss_with_its_caption(run: Path) -> None:
    (run / "metrics.jsonl").write_text("".join(json.dumps(record(i, reward=i / 4)) + "\n" for i in (1, 2)))
    found = figures.curve_figures(collect([run]))
    assert headings(found) == ["Loss", "Reward", "Forward KL from the teacher"]
    assert found[1].caption.startswith("What the task or the scorer gives")
    assert "reward. gkd: first 0.25, last 0.5" in found[1].chart


def write_rewards(folder: Path, steps: int, **config: Any) -> Path:
    """A run whose reward grows from 0.1 by 0.1 a step, its metrics and its distance with it."""
    run = write_run(folder, method="rl_gkd", rl={"reward": "my.rewards:short", **config})
    lines = [
        record(i, reward=i / 10, reverse_kl=i * i, task_metrics={"accuracy": 50.0 - i, "valid_format": 100.0})
        for i in range(1, steps + 1)
    ]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return run


def test_the_reward_against_the_metric_and_the_divergence(tmp_path: Path) -> None:
    metric, divergence = figures.reward_figures(collect([write_rewards(tmp_path / "short", 3)]))
    assert headings([metric, divergence]) == [
        "Accuracy against the reward, in training", "Reverse KL against the reward, in training",
    ]  # fmt: skip
    assert "short: from reward 0.1 and accuracy 49 at step 1 to reward 0.3 and accuracy 47 at step 3." in metric.chart
    assert "<title>short, step 2: reward 0.2, reverse KL (nats a token) 4</title>" in divergence.chart
    for figure in (metric, divergence):
        assert "Gaming the reward looks like a path that" in figure.caption


def test_many_steps_become_twelve_moments(tmp_path: Path) -> None:
    _, divergence = figures.reward_figures(collect([write_rewards(tmp_path / "long", 27)]))
    # 27 steps in twelve stretches of two or three: the first is steps 1 and 2, the last 25 to 27.
    assert "from reward 0.15 and reverse KL (nats a token) 2.5 at step 2 to reward 2.6 and" in divergence.chart
    assert "<title>long, step 27: reward 2.6, reverse KL (nats a token) 676.7</title>" in divergence.chart
    assert divergence.chart.count("<circle") == 12


def test_a_reward_that_is_the_metric_is_not_drawn_against_it(tmp_path: Path) -> None:
    same, other = (write_rewards(tmp_path / name, 3, reward=name) for name in ("accuracy", "valid_format"))
    assert headings(figures.reward_figures(collect([same]))) == ["Reverse KL against the reward, in training"]
    metric, divergence = figures.reward_figures(collect([same, other]))
    assert "accuracy: from" not in metric.chart
    assert "valid_format: from reward 0.1" in metric.chart
    assert "accuracy: from reward 0.1" in divergence.chart


def rewarded(value: float, reward: float) -> Row:
    return replace(row("greedy", value), reward=Estimate(reward, None))


def test_the_held_out_metric_against_the_held_out_reward(tmp_path: Path, run: Path) -> None:
    own = write_rewards(tmp_path / "short", 3)
    lines = [json.loads(line) for line in (own / "metrics.jsonl").read_text().splitlines()]
    lines[0]["evaluation"] = {"accuracy greedy": 40.0, "reward greedy": 0.25, "accuracy T=1": 1.0}
    (own / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    for when, found in (("before", rewarded(50.0, 0.125)), ("after", rewarded(30.0, 0.5))):
        save(evaluation([found, row("T=1", 10.0)], 0.5), own / "evaluation" / when, {})
    held_out, metric, divergence = figures.reward_figures(collect([own, run]))
    assert headings([held_out, metric, divergence]) == [
        "Accuracy against the reward, held out, greedy",
        "Accuracy against the reward, in training",
        "Reverse KL against the reward, in training",
    ]  # fmt: skip
    assert (
        "short: from reward 0.125 and accuracy 50 at step 0 to reward 0.5 and accuracy 30 at step 3." in held_out.chart
    )
    assert "<title>short, step 1: reward 0.25, accuracy 40</title>" in held_out.chart
    assert held_out.chart.count("<circle") == 3
    assert "gkd" not in held_out.chart  # the other run has no reward
    assert "On held-out examples" in held_out.caption
    # A run whose reward is the metric itself.
    same = write_rewards(tmp_path / "same", 3, reward="accuracy")
    save(evaluation([rewarded(50.0, 0.5)], 0.5), same / "evaluation" / "before", {})
    save(evaluation([rewarded(60.0, 0.6)], 0.5), same / "evaluation" / "after", {})
    assert headings(figures.reward_figures(collect([same]))) == ["Reverse KL against the reward, in training"]


def test_a_reward_needs_two_steps_and_a_run_a_reward(tmp_path: Path, run: Path) -> None:
    assert figures.reward_figures(collect([run, write_rewards(tmp_path / "one", 1)])) == []


def test_the_evaluation_runs_from_before_to_after(run: Path) -> None:
    greedy, sampled = figures.evaluation_figures(collect([run]))
    assert (greedy.heading, sampled.heading) == ("Accuracy, greedy", "Accuracy, T=1")
    assert "gkd: first 20, last 60.5, lowest 20, highest 60.5" in greedy.chart
    for step, value in ((0, 10), (2, 11), (3, 30.25)):
        assert f"<title>gkd, {step}: {value}</title>" in sampled.chart


def test_every_metric_has_charts_of_its_own(tmp_path: Path, run: Path) -> None:
    runs = collect([run, write_run(tmp_path / "xsum", metric="rouge2")])
    found = figures.evaluation_figures(runs)
    assert headings(found) == ["Accuracy, greedy", "Accuracy, T=1", "ROUGE-2, greedy", "ROUGE-2, T=1"]
    assert "<desc>accuracy. gkd: first 20, last 60.5, lowest 20, highest 60.5.</desc>" in found[0].chart
    assert "<desc>rouge2. xsum: first 10, last 30.25, lowest 10, highest 30.25.</desc>" in found[3].chart
    accuracy, rouge = figures.quality_figures(runs)
    assert headings([accuracy, rouge]) == ["Accuracy against temperature", "ROUGE-2 against temperature"]
    assert "xsum" not in accuracy.chart
    assert "gkd" not in rouge.chart
    assert "xsum before training: first 20, last 10" in rouge.chart


def test_tasks_that_share_a_metric_have_charts_of_their_own(tmp_path: Path, run: Path) -> None:
    other = write_run(tmp_path / "problems", task={"name": "gsm8k"})
    runs = collect([run, other])
    found = figures.evaluation_figures(runs)
    assert headings(found) == [
        "Accuracy on jsonl, greedy", "Accuracy on jsonl, T=1", "Accuracy on gsm8k, greedy", "Accuracy on gsm8k, T=1",
    ]  # fmt: skip
    assert "<desc>accuracy. problems: first 20, last 60.5, lowest 20, highest 60.5.</desc>" in found[2].chart
    first, second = figures.quality_figures(runs)
    assert headings([first, second]) == [
        "Accuracy on jsonl against temperature",
        "Accuracy on gsm8k against temperature",
    ]
    assert "problems" not in first.chart
    assert "gkd" not in second.chart
    lines = "".join(json.dumps(record(i, reward=i / 4, task_metrics={"accuracy": 25.0 * i})) + "\n" for i in (1, 2))
    for folder in (run, other):
        (folder / "metrics.jsonl").write_text(lines)
    assert headings(figures.reward_figures(collect([run, other]))) == [
        "Accuracy on jsonl against the reward, in training", "Accuracy on gsm8k against the reward, in training",
    ]  # fmt: skip


def test_a_figure_that_is_not_finite_is_not_drawn(run: Path) -> None:
    for when, greedy in (("before", 20.0), ("after", math.nan)):
        reevaluate(run, when, [row("greedy", greedy), row("T=1", math.nan), row("T=inf", 5.0, math.inf)])
    runs = collect([run])
    found = figures.evaluation_figures(runs)
    assert headings(found) == ["Accuracy, greedy", "Accuracy, T=1", "Accuracy, T=inf"]
    assert "gkd: first 20, last 33, lowest 20, highest 33" in found[0].chart  # 33: during training
    assert not any("nan" in figure.chart for figure in found)
    assert figures.quality_figures(runs) == []


def test_a_curve_holds_no_figures_of_other_examples(run: Path) -> None:
    reevaluate(run, "after", [row("greedy", 60.5)], final="test")
    (figure,) = figures.evaluation_figures(collect([run]))
    assert "<desc>accuracy. gkd: first 60.5, last 60.5, lowest 60.5, highest 60.5.</desc>" in figure.chart


def test_quality_against_temperature_and_diversity(run: Path) -> None:
    save_diverse(run)
    runs = collect([run])
    temperature, bleu, both = figures.quality_figures(runs)
    assert headings([temperature, bleu, both]) == [
        "Accuracy against temperature", "Self-BLEU against temperature", "Accuracy against diversity",
    ]  # fmt: skip
    assert "gkd before training: first 20, last 10" in temperature.chart
    assert "gkd: first 60.5, last 30.25" in temperature.chart
    # Greedy decoding writes one sample, which has no diversity.
    assert "gkd before training: first 80, last 40" in bleu.chart
    assert "gkd: first 95, last 60" in bleu.chart
    # By ascending Self-BLEU: temperature 1, then 0.5.
    assert "gkd: first 30.25, last 50" in both.chart
    assert [figure.chart.count('class="interval') for figure in (temperature, bleu, both)] == [6, 0, 4]
    assert figures.diversity_hint(runs) == ""


@pytest.mark.parametrize(
    "rows", [[row("greedy", 20.0), row("T=1", 10.0)], [row("greedy", 20.0), row("T=1", 10.0, 40.0)]]
)
def test_without_charts_of_diversity_the_page_says_what_gives_them(rows: list[Row], run: Path) -> None:
    for when in ("before", "after"):
        save(evaluation(rows, 0.5), run / "evaluation" / when, {})
    runs = collect([run])
    assert headings(figures.quality_figures(runs)) == ["Accuracy against temperature"]
    assert figures.diversity_hint(runs).endswith("--eval.temperatures 0 0.5 1 --eval.samples-per-prompt 4.")


def test_the_hint_spells_options_that_give_the_charts() -> None:
    options = figures.DIVERSITY_HINT.removesuffix(".").partition("prompt: ")[2].split()
    config = train_config(["--student", "s", "--teacher", "t", *options])
    assert config.eval.samples_per_prompt > 1
    assert sum(temperature > 0 for temperature in config.eval.temperatures) > 1


def test_marks_over_training(run: Path) -> None:
    (figure,) = figures.marks_figure(collect([run]))
    assert "gkd: first 0.305, last 0.1525" in figure.chart


def test_all_marked_steps_of_a_long_run_are_in_the_chart(run: Path) -> None:
    (figure,) = figures.marks_figure(collect([mark_every_step(run, 27)]))
    assert "gkd: first 0, last 0.26, lowest 0, highest 0.26." in figure.chart
    assert figure.chart.partition(' d="M')[2].partition('"')[0].count("L") == 26


def test_time(tmp_path: Path, run: Path) -> None:
    runs = collect([run, write_run(tmp_path / "other", steps=2)])
    (figure,) = figures.time_figure(runs)
    assert "<title>gkd, rollout: 6.0 seconds</title>" in figure.chart
    assert "Reward" not in figure.caption
    assert figures.phase_table(runs) == [
        (
            "gkd",
            {"rollout": "6.0 (50%)", "teacher": "1.5 (12%)", "update": "4.5 (38%)", "all": "12.0"}
            | {"training": "12.0", "tokens/s": "25", "seconds a step": "4"},
        ),
        (
            "other",
            {"rollout": "4.0 (50%)", "teacher": "1.0 (12%)", "update": "3.0 (38%)", "all": "8.0"}
            | {"training": "8.0", "tokens/s": "25", "seconds a step": "4"},
        ),
    ]


def test_what_training_cost_leaves_evaluations_and_checkpoints_out(run: Path) -> None:
    seconds = {"rollout": 1.0, "update": 0.5, "evaluate": 8.0, "checkpoint": 2.5}
    lines = [record(1), record(2, seconds=seconds)]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    ((_, cells),) = figures.phase_table(collect([run]))
    assert (cells["evaluate"], cells["all"]) == ("8.0 (50%)", "16.0")
    # 4 + 1.5 seconds, 2 steps of 100 tokens.
    assert [cells[name] for name in figures.COSTS] == ["5.5", "36", "2.75"]


def test_a_run_that_trained_in_no_time_has_no_speed(run: Path) -> None:
    (run / "metrics.jsonl").write_text(json.dumps(record(1, seconds={"rollout": 0.0, "evaluate": 2.0})) + "\n")
    ((_, cells),) = figures.phase_table(collect([run]))
    assert [cells[name] for name in figures.COSTS] == ["0.0", "–", "0"]


def test_the_caption_of_the_time_says_what_its_phases_are(run: Path) -> None:
    seconds = {"rollout": 1.0, "reward": 1.0, "importance": 1.0, "returns": 1.0, "update": 1.0, "unheard_of": 1.0}
    (run / "metrics.jsonl").write_text(json.dumps(record(1, seconds=seconds)) + "\n")
    (figure,) = figures.time_figure(collect([run]))
    assert figure.caption == (
        "Rollout: the student (or the teacher) writes sequences. Reward: the task, the scorer or the function rewards them. "
        "Importance: they are weighed by what the student of now would have written. Returns: every token gets the divergence of "
        "what follows it. Update: the student's forward and backward pass with the optimiser. Loading, and the evaluations before "
        "and after training, are not in it. Training, tokens/s and seconds a step leave evaluate and checkpoint out."
    )
