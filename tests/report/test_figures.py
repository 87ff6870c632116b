import json
from pathlib import Path

from tests.report.conftest import record, write_run
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


def test_the_reward_stands_behind_the_loss_with_its_caption(run: Path) -> None:
    (run / "metrics.jsonl").write_text("".join(json.dumps(record(i, reward=i / 4)) + "\n" for i in (1, 2)))
    found = figures.curve_figures(collect([run]))
    assert headings(found) == ["Loss", "Reward", "Forward KL from the teacher"]
    assert found[1].caption.startswith("What the task or the scorer gives")
    assert "reward. gkd: first 0.25, last 0.5" in found[1].chart


def test_the_evaluation_runs_from_before_to_after(run: Path) -> None:
    greedy, sampled = figures.evaluation_figures(collect([run]))
    assert (greedy.heading, sampled.heading) == ("Accuracy, greedy", "Accuracy, T=1")
    assert "gkd: first 20, last 60.5, lowest 20, highest 60.5" in greedy.chart
    for step, value in ((0, 10), (2, 11), (3, 30.25)):
        assert f"<title>gkd, {step}: {value}</title>" in sampled.chart


def test_quality_against_temperature_and_diversity(run: Path) -> None:
    temperature, bleu, both = figures.quality_figures(collect([run]))
    assert "gkd before training: first 20, last 10" in temperature.chart
    assert "gkd: first 60.5, last 30.25" in temperature.chart
    assert "gkd: first 90, last 40" in bleu.chart
    # By ascending Self-BLEU: sampled, then greedy.
    assert "gkd: first 30.25, last 60.5" in both.chart


def test_marks_over_training(run: Path) -> None:
    (figure,) = figures.marks_figure(collect([run]))
    assert "gkd: first 0.305, last 0.1525" in figure.chart


def test_time(tmp_path: Path, run: Path) -> None:
    runs = collect([run, write_run(tmp_path / "other", steps=2)])
    (figure,) = figures.time_figure(runs)
    assert "<title>gkd, rollout: 6.0 seconds</title>" in figure.chart
    assert figures.phase_table(runs) == [
        ("gkd", {"rollout": "6.0 (50%)", "teacher": "1.5 (12%)", "update": "4.5 (38%)", "all": "12.0"}),
        ("other", {"rollout": "4.0 (50%)", "teacher": "1.0 (12%)", "update": "3.0 (38%)", "all": "8.0"}),
    ]
