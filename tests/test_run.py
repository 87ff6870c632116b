from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from rich.console import Console
from safetensors import SafetensorError

import tutelage
from tests.conftest import build_module, tokenizer
from tests.sums import Sums, live, sums_config
from tutelage import run
from tutelage.errors import UserError
from tutelage.eval import marks
from tutelage.models import load
from tutelage.models.language_model import LanguageModel
from tutelage.train import config_io
from tutelage.train.config import Config
from tutelage.train.signals import Interrupted


@pytest.fixture
def make_config(tmp_path: Path) -> Callable[..., Config]:
    """`sums_config` in the test's own folder."""
    return partial(sums_config, tmp_path / "run")


def logits(module: Any, encoder_decoder: bool) -> torch.Tensor:
    ids = torch.tensor([[5, 9, 30, 7]])
    with torch.no_grad():
        return module(input_ids=ids, **({"decoder_input_ids": ids} if encoder_decoder else {})).logits


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


def test_a_bfloat16_student_is_trained_in_place_again_and_again(make_config: Callable[..., Config]) -> None:
    student, teacher = live(dtype=torch.bfloat16), live(seed=1)
    for _ in range(2):
        before = student.head.weight.detach().clone()
        result = run.run(make_config(overwrite=True), student=student, teacher=teacher, task=Sums())
        assert all(record["grad_norm"] > 0 for record in result.records)
        assert not torch.equal(student.head.weight, before)
    student.module(input_ids=torch.tensor([[5, 9, 30]])).logits.sum().backward()  # its owner's own loop
    assert all(parameter.grad is not None for parameter in student.module.parameters())


@pytest.mark.parametrize("replay", [0, 6])
def test_resume_without_the_rollout_log(replay: int, make_config: Callable[..., Config]) -> None:
    changes = {"train.steps": 4, "train.checkpoint_every": 2, "rollout.replay": replay}
    config = make_config(**changes)
    models: dict[str, Any] = {"student": live(), "teacher": live(seed=1), "task": Sums()}
    run.run(config, **models)
    rollouts = config.output / "rollouts"
    rollouts.rename(config.output / "kept")
    resuming = make_config(resume=True, **changes)
    run.run(resuming, **models)  # all is trained: no step is left that would draw
    shutil.rmtree(rollouts)
    shutil.rmtree(config.output / "checkpoints" / "step-00000004")
    if replay:
        with pytest.raises(UserError, match=r"rollouts\.jsonl lacks step 0, .* from the checkpoint after 2 steps"):
            run.run(resuming, **models)
        shutil.rmtree(rollouts)
        (config.output / "kept").rename(rollouts)
    result = run.run(resuming, **models)
    assert [record["step"] for record in result.records] == [3, 4]


def test_student_from_the_teachers_layers(make_config: Callable[..., Config]) -> None:
    config = make_config(student=None, student_model={"init": "teacher_layers", "layers": 1}, method="sft")
    result = run.run(config, teacher=live(seed=1), task=Sums())
    assert result.student.config.num_hidden_layers == 1
    assert all("forward_kl" not in record for record in result.records)


@pytest.mark.parametrize("missing", [False, True])
def test_a_full_disk_at_the_end(
    missing: bool, make_config: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(model: LanguageModel, folder: Path) -> None:
        code = 2 if missing else 28
        raise SafetensorError(f"Error while serializing: I/O error: something (os error {code})")

    monkeypatch.setattr(load, "save", full)
    expected = (
        (SafetensorError, "os error 2") if missing else (UserError, r"no space left on the disk of .* \(resume\)")
    )
    with pytest.raises(expected[0], match=expected[1]):
        run.run(make_config(), student=live(), teacher=live(seed=1), task=Sums())


def test_the_run_records_its_configuration(make_config: Callable[..., Config]) -> None:
    config = make_config(divergence="reverse_kl")
    run.run(config, student=live(), teacher=live(seed=1), task=Sums())
    assert config_io.build(config_io.load_yaml(config.output / "config.yaml")) == config
    assert json.loads((config.output / "run.json").read_text())["divergence"] == "reverse_kl"


@pytest.mark.parametrize(
    ("moment", "advice"),
    [
        ("before", "SIGTERM: stopped, before anything was trained in .*run; start the same command again"),
        ("after", "SIGTERM: stopped, go on with: tutelage train .*run/config.yaml --resume"),
    ],
)
def test_sigterm_during_an_evaluation(
    moment: str, advice: str, make_config: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    original = run._Judge.judge

    def judge(self: Any, when: str, *start: Any) -> Any:
        if when == moment:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(self, when, *start)

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
    first, second = (choice.probability for choice in found["same"].teacher[:2])
    sharp_first, sharp_second = (choice.probability for choice in found["sharp"].teacher[:2])
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
