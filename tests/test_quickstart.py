"""The quickstart on tiny random models: that it is whole and consistent, not that anything is learnt in three steps."""

from __future__ import annotations

import io
import json
import os
import signal
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from matplotlib.image import imread
from rich.console import Console
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from tutelage import quickstart
from tutelage.eval.statistics import Interval, PairedDifference
from tutelage.quickstart import report
from tutelage.quickstart.settings import ON_POLICY_GKD, SUPERVISED_KD, Settings, configuration
from tutelage.tasks.arithmetic import build_tokenizer
from tutelage.train.config import Config
from tutelage.train.metrics import read_metrics
from tutelage.train.optim import Optimizer
from tutelage.train.signals import Interrupted

SYSTEMS = ["teacher", "student_before", "supervised_kd", "on_policy_gkd"]
STEPS = 3


def save_model(folder: Path, width: int, seed: int) -> Path:
    tokenizer = build_tokenizer()
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=width, intermediate_size=2 * width, num_hidden_layers=1,
        num_attention_heads=2, max_position_embeddings=256, tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@dataclass(frozen=True)
class Finished:
    """A finished quickstart: its folder, its settings, what it printed, its results.json."""

    folder: Path
    settings: Settings
    printed: str
    results: dict[str, Any]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """Run twice into one folder, with other steps: the second replaces the first."""
    models, folder = tmp_path_factory.mktemp("models"), tmp_path_factory.mktemp("quickstart")
    settings = Settings(
        teacher=save_model(models / "teacher", 16, seed=1),
        student=save_model(models / "student", 8, seed=2),
        train_size=12,
        prompt_size=16,
        steps=STEPS,
        batch_size=4,
        evaluate_every=2,
        validation_size=5,
        test_size=6,
        resamples=50,
    )
    quickstart.main(output=folder, settings=replace(settings, steps=1), console=Console(file=io.StringIO()))
    printed = io.StringIO()
    quickstart.main(output=folder, settings=settings, console=Console(file=printed, width=100))
    return Finished(folder, settings, printed.getvalue(), json.loads((folder / "results.json").read_text()))


def test_the_table_has_the_four_models(finished: Finished) -> None:
    assert list(finished.results["systems"]) == SYSTEMS
    rows = [line for line in finished.printed.splitlines() if line.startswith("│")]
    labels = [row.split("│")[1].strip() for row in rows]
    assert labels == ["teacher", "student before", "supervised KD", "on-policy GKD", "difference"]


def test_both_methods_take_equal_steps_from_the_same_student(finished: Finished) -> None:
    runs = [finished.folder / name for name in ("supervised_kd", "on_policy_gkd")]
    assert [[record["step"] for record in read_metrics(run / "metrics.jsonl")] for run in runs] == [[1, 2, 3]] * 2
    trainings = [finished.results["systems"][name]["training"] for name in ("supervised_kd", "on_policy_gkd")]
    assert [training["steps"] for training in trainings] == [STEPS, STEPS]
    # Evaluated before the first step, every second one, and after the last; the first point is the same student's.
    assert [[point["step"] for point in training["validation"]] for training in trainings] == [[0, 2, 3]] * 2
    assert trainings[0]["validation"][0] == trainings[1]["validation"][0]


def test_one_method_learns_from_the_data_the_other_from_the_student(finished: Finished) -> None:
    shares = [
        {record["student_share"] for record in read_metrics(finished.folder / name / "metrics.jsonl")}
        for name in ("supervised_kd", "on_policy_gkd")
    ]
    assert shares == [{0.0}, {1.0}]


def test_seconds_are_those_of_training_alone(finished: Finished) -> None:
    for name in ("supervised_kd", "on_policy_gkd"):
        seconds = finished.results["systems"][name]["training"]["seconds"]
        phases = {key: value for key, value in seconds.items() if key != "total"}
        assert set(phases) == {"rollout", "teacher", "update"}
        assert seconds["total"] == pytest.approx(sum(phases.values()))
        records = read_metrics(finished.folder / name / "metrics.jsonl")
        assert phases["update"] == pytest.approx(sum(record["seconds"]["update"] for record in records))


def test_figures_agree_with_the_saved_answers(finished: Finished) -> None:
    accuracy: dict[tuple[str, str], float] = {}
    for name in SYSTEMS:
        lines = (finished.folder / "test" / name / "completions.jsonl").read_text().splitlines()
        for decoding in ("greedy", "T=1"):
            marks = [c["mark"] for c in map(json.loads, lines) if c["decoding"] == decoding]
            assert len(marks) == finished.settings.test_size
            found = finished.results["systems"][name][decoding]
            accuracy[name, decoding] = 100 * sum(marks) / len(marks)
            assert found["accuracy"] == pytest.approx(accuracy[name, decoding])
            assert found["low"] <= found["accuracy"] <= found["high"]
    for decoding, found in finished.results["on_policy_minus_supervised"].items():
        difference = accuracy["on_policy_gkd", decoding] - accuracy["supervised_kd", decoding]
        assert found["difference"] == pytest.approx(difference)


def test_the_student_moved_and_is_an_ordinary_folder(finished: Finished) -> None:
    before = AutoModelForCausalLM.from_pretrained(finished.settings.student).state_dict()
    weights = [
        AutoModelForCausalLM.from_pretrained(finished.folder / name / "model").state_dict()
        for name in ("supervised_kd", "on_policy_gkd")
    ]
    name = "model.layers.0.mlp.up_proj.weight"
    assert not torch.equal(weights[0][name], before[name])
    assert not torch.equal(weights[0][name], weights[1][name])


def test_the_plot_is_a_picture_of_two_panels(finished: Finished) -> None:
    content = (finished.folder / "plot.png").read_bytes()
    assert content.startswith(b"\x89PNG\r\n\x1a\n")
    picture = imread(finished.folder / "plot.png")
    assert picture.shape[1] > picture.shape[0] > 400
    # Something is drawn on either side.
    middle = picture.shape[1] // 2
    assert (picture[:, :middle, :3] < 0.5).any()
    assert (picture[:, middle:, :3] < 0.5).any()


def test_the_text_names_the_regime_and_the_conditions(finished: Finished) -> None:
    text = " ".join(finished.printed.split())
    for needed in (
        "12 worked answers",
        "regime of few outputs",
        "supervised KD was ahead at equal steps",
        "Steps are matched (3 each)",
        "at 350 steps, found by make reproduce PARTS=rates",
        "on_policy_gkd/config.yaml --train.steps 9",
        "test split is used once",
    ):
        assert needed in text


def test_a_run_of_other_settings_is_replaced_and_named(finished: Finished) -> None:
    folder = finished.folder / "supervised_kd"
    changed = "train.steps: 1 there, 3 now; train.warmup_steps: 0 there, 2 now"
    assert f"the run in {folder} is another one ({changed}): starting anew" in finished.printed


def test_interrupted_it_goes_on_where_it_was(
    finished: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """At the second step of the second run: the first is not trained again, the second goes on with its third."""
    update, taken = Optimizer.step, list[int]()

    def step(self: Optimizer, number: int, loss: Any) -> Any:
        taken.append(number)
        if len(taken) == STEPS + 2:
            os.kill(os.getpid(), signal.SIGINT)
        return update(self, number, loss)

    monkeypatch.setattr(Optimizer, "step", step)
    quiet = Console(file=io.StringIO())
    with pytest.raises(Interrupted, match=r"^SIGINT: stopped; the same command goes on from here$") as left:
        quickstart.main(output=tmp_path, settings=finished.settings, console=quiet)
    assert left.value.signal_number == signal.SIGINT
    assert taken == [0, 1, 2, 0, 1]
    assert not (tmp_path / "results.json").exists()

    quickstart.main(output=tmp_path, settings=finished.settings, console=quiet)
    assert taken == [0, 1, 2, 0, 1, 2]
    told = capfd.readouterr().err
    assert f"all 3 steps in {tmp_path / 'supervised_kd'} are done: only saving the student and evaluating it" in told
    assert f"going on from step 2 of 3 in {tmp_path / 'on_policy_gkd'}" in told
    results = json.loads((tmp_path / "results.json").read_text())
    for name in SYSTEMS[2:]:
        system, undisturbed = results["systems"][name], finished.results["systems"][name]
        assert system["greedy"] == undisturbed["greedy"]
        assert system["training"]["validation"] == undisturbed["training"]["validation"]
        records = read_metrics(tmp_path / name / "metrics.jsonl")
        spent = sum(record["seconds"]["update"] for record in records)
        assert system["training"]["seconds"]["update"] == pytest.approx(spent)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_interrupted_outside_the_trainings_it_says_the_same(
    number: signal.Signals, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def compare(*_: Any) -> None:
        os.kill(os.getpid(), number)
        pytest.fail("went on")

    monkeypatch.setattr(quickstart.experiment, "compare", compare)
    earlier = signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in a shell's background jobs
    try:
        with pytest.raises(Interrupted, match=f"^{number.name}: stopped; the same command goes on from here$") as left:
            quickstart.main(output=tmp_path, console=Console(file=io.StringIO()))
    finally:
        signal.signal(signal.SIGINT, earlier)
    assert left.value.signal_number == number


@pytest.mark.parametrize(("steps", "duration"), [(350, "About 4 minutes on two cores"), (20, "About a minute on")])
def test_the_header_follows_the_steps(steps: int, duration: str) -> None:
    printed = io.StringIO()
    report.print_header(Console(file=printed, width=100), Settings(steps=steps), Path("out"))
    text = " ".join(printed.getvalue().split())
    assert f"{steps} steps each" in text
    assert duration in text
    assert "Interrupted, the same command goes on where it was." in text


def test_examples_are_written_and_printed_with_the_reference(finished: Finished) -> None:
    page = (finished.folder / "examples.md").read_text()
    assert page.count("| reference | student before | supervised KD | on-policy GKD |") == finished.settings.test_size
    assert "Leo has 28 pears." in page
    assert "| 28 / 7 = 4 |" in page
    assert " 28 / 7 = 4 " in finished.printed


def test_lines_of_an_answer() -> None:
    assert report.answer_lines("12 + 7 = 19. 19 - 4 = 15. #### 15") == ["12 + 7 = 19", "19 - 4 = 15", "#### 15"]
    assert report.answer_lines("") == []


@pytest.mark.parametrize(
    ("low", "difference", "high", "said"),
    [
        (0.5, 4.4, 8.1, "is ahead by 4.4 points [+0.5, +8.1]"),
        (-8.1, -4.4, -0.5, "is behind by 4.4 points [-8.1, -0.5]"),
        (-0.8, 3.2, 7.1, "cannot be told from supervised KD (+3.2 points [-0.8, +7.1])"),
        (0.0, 3.2, 7.1, "cannot be told from supervised KD (+3.2 points [+0.0, +7.1])"),
    ],
)
def test_the_verdict_follows_the_interval(low: float, difference: float, high: float, said: str) -> None:
    assert report.verdict(PairedDifference(difference, Interval(low, high), 0.1)) == said


def test_the_two_runs_differ_in_method_learning_rate_and_problems_only() -> None:
    settings = Settings()

    def shared(config: Config) -> dict[str, Any]:
        content = config.model_dump()
        for key in ("method", "divergence"):
            content.pop(key)
        for key in ("learning_rate", "matrix_learning_rate"):
            content["train"].pop(key)
        content["task"]["options"].pop("train_size")
        return content

    first, second = (configuration(settings, method, Path("run"), 0) for method in (SUPERVISED_KD, ON_POLICY_GKD))
    assert shared(first) == shared(second)
    assert (first.method, second.method) == ("supervised_kd", "gkd")
    assert first.task.options["train_size"] == settings.train_size  # worked answers
    assert second.task.options["train_size"] == settings.prompt_size  # problems; on-policy reads no answers
    assert first.divergence == "forward_kl"
    assert second.student_data_fraction is None  # the preset's: on-policy throughout
    assert first.eval.final == "validation"  # training never looks at the test split
