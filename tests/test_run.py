from __future__ import annotations

import io
import json
import math
import os
import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from rich.console import Console
from safetensors import SafetensorError

import tutelage
from tests.conftest import build_model, build_module, tokenizer
from tutelage import run
from tutelage.errors import MissingSplitError, UserError
from tutelage.eval import marks
from tutelage.eval.evaluate import evaluate
from tutelage.models import load
from tutelage.models.language_model import LanguageModel
from tutelage.tasks.base import Example, Generation, Scores
from tutelage.tasks.metrics import mean_scores
from tutelage.train import config_io
from tutelage.train.config import Config
from tutelage.train.signals import Interrupted


@dataclass
class Sums:
    """A task of one's own: right when the sum is."""

    splits: tuple[str, ...] = ("train", "validation")
    name: str = "sums"
    metric: str = "accuracy"
    generation: Generation = field(default_factory=lambda: Generation(max_prompt_tokens=16, max_new_tokens=6))

    def examples(self, split: str) -> Sequence[Example]:
        if split not in self.splits:
            raise MissingSplitError(f"the sums have no {split} split")
        return [{"a": a, "b": b} for a in range(3) for b in range(2)]

    def prompt(self, example: Example) -> str:
        return f"{example['a']} + {example['b']} ="

    def reference(self, example: Example) -> str:
        return f" {example['a'] + example['b']}"

    def score(self, completions: Sequence[str], examples: Sequence[Example]) -> Scores:
        pairs = zip(completions, examples, strict=True)
        return mean_scores("accuracy", [float(text == self.reference(example)) for text, example in pairs])


def live(family: str = "llama", seed: int = 0, **options: Any) -> LanguageModel:
    return build_model(family, with_tokenizer=True, seed=seed, **{"dtype": torch.float32, **options})


@pytest.fixture
def make_config(tmp_path: Path) -> Callable[..., Config]:
    def make(**changes: Any) -> Config:
        tiny = {"steps": 2, "batch_size": 3, "learning_rate": 0.01, "device": "cpu"}
        base = {"student": "tiny-student", "teacher": "tiny-teacher", "output": str(tmp_path / "run"), "train": tiny}
        quiet = {"log": {"progress": False}, "eval": {"final": "none"}, "task": {"name": "sums"}}
        return config_io.build(config_io.deep_merge({**base, **quiet}, config_io.nest(changes)))

    return make


def logits(module: Any, encoder_decoder: bool) -> torch.Tensor:
    ids = torch.tensor([[5, 9, 30, 7]])
    with torch.no_grad():
        return module(input_ids=ids, **({"decoder_input_ids": ids} if encoder_decoder else {})).logits  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("family", "dtype", "lora"),
    [("llama", torch.float32, 0), ("t5", torch.float32, 0), ("llama", torch.bfloat16, 0), ("llama", torch.float32, 2)],
)
def test_the_finished_student_is_an_ordinary_folder(
    family: str, dtype: torch.dtype, lora: int, make_config: Callable[..., Config]
) -> None:
    student = live(family, dtype=dtype)
    before = logits(student.module, student.is_encoder_decoder)
    if lora:
        student = load.add_lora(student, load.LoraConfig(rank=lora, alpha=64.0))
        before = logits(student.module, student.is_encoder_decoder)
    result = run.run(make_config(), student=student, teacher=live(family, seed=1), task=Sums())
    assert result.student is student
    auto = transformers.AutoModelForSeq2SeqLM if student.is_encoder_decoder else transformers.AutoModelForCausalLM
    loaded = auto.from_pretrained(result.folder, dtype="auto")
    assert type(loaded) is type(student.base)
    assert loaded.dtype == dtype
    after = logits(student.module.eval(), student.is_encoder_decoder)
    torch.testing.assert_close(logits(loaded, student.is_encoder_decoder), after, rtol=0, atol=1e-5 if lora else 0)
    assert not torch.allclose(after, before, atol=1e-3)
    text = "12 + 7 = 19"
    assert transformers.AutoTokenizer.from_pretrained(result.folder)(text).input_ids == tokenizer()(text).input_ids


def test_distill_with_live_objects_and_a_task_of_ones_own(tmp_path: Path) -> None:
    student, teacher = (build_module("llama", seed=s, dtype=torch.float32, vocab=226) for s in (0, 1))
    before = student.lm_head.weight.detach().clone()
    result = tutelage.distill(
        student=(student, tokenizer()), teacher=(teacher, tokenizer()), task=Sums(), divergence="jsd(0.9)", steps=3,
        batch_size=3, learning_rate=0.01, temperatures=(0.0,), bootstrap=10, output=tmp_path / "run", progress=False,
    )  # fmt: skip
    assert result.student.module is student
    assert not torch.equal(student.lm_head.weight, before)
    assert [record["step"] for record in result.records] == [1, 2, 3]
    assert result.before is not None
    assert result.after is not None
    assert {c.prompt_id for c in result.after.completions} == set(range(6))
    for when in ("before", "after"):
        assert list((tmp_path / "run" / "evaluation" / when).iterdir())


def test_student_from_the_teachers_layers(make_config: Callable[..., Config]) -> None:
    config = make_config(student=None, student_model={"init": "teacher_layers", "layers": 1}, method="sft")
    result = run.run(config, teacher=live(seed=1), task=Sums())
    assert result.student.config.num_hidden_layers == 1
    assert all("forward_kl" not in record for record in result.records)


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


@pytest.mark.parametrize("missing", [False, True])
def test_a_full_disk_at_the_end(
    missing: bool, make_config: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(model: LanguageModel, folder: Path) -> None:
        code = 2 if missing else 28
        raise SafetensorError(f"Error while serializing: I/O error: something (os error {code})")

    monkeypatch.setattr(load, "save", full)
    expected = (SafetensorError, "os error 2") if missing else (UserError, "no space left on the disk of .*--resume")
    with pytest.raises(expected[0], match=expected[1]):
        run.run(make_config(), student=live(), teacher=live(seed=1), task=Sums())


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


def test_the_run_records_its_configuration(make_config: Callable[..., Config]) -> None:
    config = make_config(divergence="reverse_kl")
    run.run(config, student=live(), teacher=live(seed=1), task=Sums())
    assert config_io.build(config_io.load_yaml(config.output / "config.yaml")) == config
    assert json.loads((config.output / "run.json").read_text())["divergence"] == "reverse_kl"


@pytest.mark.parametrize(
    ("moment", "advice"),
    [
        ("before", "SIGTERM: stopped, before anything was trained in .*run; start the same command again"),
        ("after", "SIGTERM: stopped, go on with --resume --output .*run"),
    ],
)
def test_sigterm_during_an_evaluation(
    moment: str, advice: str, make_config: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    original = run._Judge.judge

    def judge(self: Any, when: str) -> Any:
        if when == moment:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(self, when)

    monkeypatch.setattr(run._Judge, "judge", judge)
    with pytest.raises(Interrupted, match=advice) as left:
        run.run(make_config(), student=live(), teacher=live(seed=1), task=Sums())
    assert left.value.signal_number == signal.SIGTERM


@pytest.mark.parametrize("replaced", [False, True])
def test_sigterm_while_an_earlier_run_is_overwritten_does_not_advise_to_resume_that(
    replaced: bool, make_config: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    run.run(make_config(), student=live(), teacher=live(seed=1), task=Sums())
    original = run.prepare

    def prepare(*args: Any, **kwargs: Any) -> Any:
        found = original(*args, **kwargs) if replaced else None
        os.kill(os.getpid(), signal.SIGTERM)
        return found

    monkeypatch.setattr(run, "prepare", prepare)
    with pytest.raises(Interrupted, match=r"before the run in .*run was replaced; start the same command again"):
        run.run(make_config(overwrite=True), student=live(), teacher=live(seed=1), task=Sums())


def test_sigterm_after_an_earlier_run_was_overwritten_speaks_of_the_new_one(
    make_config: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    run.run(make_config(), student=live(), teacher=live(seed=1), task=Sums())
    monkeypatch.setattr(run._Judge, "judge", lambda *args: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(Interrupted, match=r"before anything was trained in .*run; start the same command again"):
        run.run(make_config(overwrite=True), student=live(), teacher=live(seed=1), task=Sums())


def test_a_run_without_progress_ends_with_its_table_and_its_paths(
    make_config: Callable[..., Config], capsys: pytest.CaptureFixture[str]
) -> None:
    evaluation = {"final": "validation", "temperatures": [0.0], "bootstrap": 10, "marks": 0}
    config = make_config(eval=evaluation)
    assert not config.log.progress
    result = run.run(config, student=live(), teacher=live(seed=1), task=Sums())
    printed = capsys.readouterr()
    lines = printed.out.splitlines()
    assert lines[-2:] == [f"student: {result.folder}", f"report: {config.output / 'report.html'}"]
    assert "agreement with the teacher" in printed.out
    assert "evaluating" not in printed.err
    run.run(make_config(overwrite=True), student=live(), teacher=live(seed=1), task=Sums(), console=Console(quiet=True))
    assert capsys.readouterr().out == ""


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


def test_marks_are_made_at_the_teachers_own_temperature(make_config: Callable[..., Config]) -> None:
    found = {}
    for name, temperature in (("sharp", 0.25), ("same", None)):
        config = make_config(
            divergence="forward_kl",
            loss={"teacher_temperature": temperature},
            eval={"final": "validation", "temperatures": [0.0], "bootstrap": 0, "marks": 1},
            output=str(Path(make_config().output).parent / name),
        )
        run.run(config, student=live(), teacher=live(seed=1), task=Sums())
        found[name] = marks.read_all(config.output)[0][0].tokens[0]
    # The likeliest of the teacher's tokens, at temperature 1 and at 1/4: p_i^4 / p_j^4.
    (_, first), (_, second) = found["same"].teacher[:2]
    (_, sharp_first), (_, sharp_second) = found["sharp"].teacher[:2]
    assert sharp_first / sharp_second == pytest.approx((first / second) ** 4, rel=1e-3)


def test_a_run_ends_with_marks_and_a_report(make_config: Callable[..., Config]) -> None:
    config = make_config(**{"eval.marks": 2, "eval.every": 1, "eval.final": "validation"})
    run.run(config, student=live(), teacher=live(seed=1), task=Sums())
    marked = marks.read_all(config.output)
    assert list(marked) == list(range(config.train.steps + 1))
    assert {len(sequences) for sequences in marked.values()} == {2}
    page = (config.output / "report.html").read_text(encoding="utf-8")
    assert "0 + 1 =" in page  # the second prompt stands on the marked page
    assert "://" not in page.replace("http://www.w3.org", "")  # names of formats are all the addresses in it


def test_marks_and_report_can_be_left_out(make_config: Callable[..., Config]) -> None:
    config = make_config(**{"eval.marks": 0, "eval.final": "validation", "log.report": False})
    run.run(config, student=live(), teacher=live(seed=1), task=Sums())
    assert not (config.output / "marks").exists()
    assert not (config.output / "report.html").exists()
