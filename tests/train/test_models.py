"""The models of a run, above all several teachers: what they load, refuse and mark."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.conftest import build_model
from tests.sums import live
from tutelage import run
from tutelage.data.batching import micro_batches, token_weights
from tutelage.errors import UserError
from tutelage.eval import marks
from tutelage.train.config import Config
from tutelage.train.methods import resolve
from tutelage.train.models import load_models
from tutelage.train.setup import prepare

MakeConfig = Callable[..., Config]


def first_loss(config: Config) -> float:
    """The loss of the run's first micro-batch, of data-set sequences."""
    parts, _ = prepare(config)
    assert parts.teacher is not None
    rollouts = parts.source.next(0)
    (micro,) = micro_batches(rollouts, token_weights(rollouts, "sequence"), parts.student.model, 8192)
    with torch.no_grad():
        return parts.student(micro, parts.teacher.score(micro)).loss.item()


@pytest.mark.parametrize("family", ["llama", "t5"])
def test_teachers_of_a_configuration_mark_together(family: str, models: Path, make_config: MakeConfig) -> None:
    teacher, student = (str(models / f"{role}-{family}") for role in ("teacher", "student"))
    common: dict[str, Any] = {"student_data_fraction": 0.0, "divergence": "forward_kl", "overwrite": True}
    alone = first_loss(make_config(family, **common))
    twice = first_loss(make_config(family, **common, other_teachers=[teacher]))
    assert twice == pytest.approx(alone, rel=1e-4)
    # A mixture that is nearly all student leaves the student nearly nothing to learn.
    mostly = {"other_teachers": [student], "teacher_weights": [0.001, 0.999]}
    assert 0 < first_loss(make_config(family, **common, **mostly)) < 1e-3 * alone


def test_a_run_with_two_teachers(models: Path, make_config: MakeConfig) -> None:
    changes = {"eval": {"final": "validation", "limit": 2, "temperatures": [0.0], "bootstrap": 0, "marks": 2}}
    config = make_config(other_teachers=[str(models / "student-llama")], **changes, **{"train.steps": 2})
    result = run.run(config)
    assert result.after is not None
    assert [record["step"] for record in result.records] == [1, 2]
    measured = result.after.divergence["references"]
    assert measured.forward_kl.value > 0
    marked = marks.read_all(config.output)[2]
    assert all(sequence.teacher is None for sequence in marked)  # a mixture writes nothing
    assert all(math.isfinite(token.forward_kl) for sequence in marked for token in sequence.tokens)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"fixed_data": "teacher", "student_data_fraction": 0.0}, "with fixed_data=teacher: several teachers mark"),
        ({"method": "seqkd"}, "with fixed_data=teacher: several teachers mark .* but none of them writes for all"),
        ({"method": "sft", "teacher": None}, "other_teachers are further ones, but there is no teacher: set --teacher"),
        (
            {
                "method": "sft",
                "teacher": "t",
                "student": None,
                "student_model": {"init": "teacher_layers", "layers": 1},
            },
            "other_teachers=another has no effect: no teacher marks the tokens of this run",
        ),
        ({"teacher_weights": [1.0]}, r"teacher_weights=\[1.0\] for 2 teachers: give 2 positive numbers of sum 1"),
        ({"teacher_weights": [0.5, 0.6]}, r"of sum 1, the first for `teacher` \(the sum is 1.1\)"),
        ({"teacher_weights": [1.5, -0.5]}, "give 2 positive numbers"),
        ({"other_teachers": [], "teacher_weights": [1.0]}, "weighs several teachers; set other_teachers, or drop it"),
        ({"other_teachers": ["no/such/folder"]}, "no model folder at 'no/such/folder'"),
    ],
)
def test_teachers_that_do_not_fit_the_run(changes: dict[str, Any], message: str, make_config: MakeConfig) -> None:
    with pytest.raises(UserError, match=message):
        prepare(make_config(**{"other_teachers": ["another"], **changes}))


def test_every_teacher_is_of_the_students_family(models: Path, make_config: MakeConfig) -> None:
    config = make_config(other_teachers=[str(models / "teacher-t5")])
    with pytest.raises(UserError, match=r"teacher-t5\) an encoder-decoder; give two models of one family"):
        prepare(config)


def test_an_unmixable_teacher_is_found_before_an_earlier_run_is_overwritten(
    models: Path, make_config: MakeConfig
) -> None:
    config = make_config(other_teachers=[str(models / "teacher-llama")], overwrite=True)
    (config.output / "checkpoints" / "step-00000003").mkdir(parents=True)
    with pytest.raises(UserError, match="tiny-gemma2 caps its logits"):
        prepare(config, teacher=build_model("gemma2", with_tokenizer=True, dtype=torch.float32))
    assert (config.output / "checkpoints" / "step-00000003").exists()


def test_loading_is_announced(make_config: MakeConfig, capsys: pytest.CaptureFixture[str]) -> None:
    config = make_config(**{"log.progress": True})
    prepare(config)

    def announced() -> list[str]:  # among the bars of transformers
        return [line for line in capsys.readouterr().err.splitlines() if line.startswith("loading ")]

    assert announced() == [f"loading teacher {config.teacher}", f"loading student {config.student}"]
    prepare(make_config())
    assert announced() == []


def test_live_models_are_moved_to_the_runs_device(make_config: MakeConfig, capsys: pytest.CaptureFixture[str]) -> None:
    """The device without storage stands for a GPU: it is another one than the CPU's on every machine."""
    config = make_config(**{"log.progress": True})
    student, teacher = live(), live(seed=1)
    found, teachers = load_models(config, resolve(config), student, teacher, torch.device("meta"))
    assert found is student
    assert teachers == [teacher]
    for model in (student, teacher):
        assert {parameter.device.type for parameter in model.module.parameters()} == {"meta"}
        assert model.head.weight.device == model.device == torch.device("meta")
    moves = [f"moving {role} tiny-llama from cpu to meta" for role in ("student", "teacher")]
    assert capsys.readouterr().err.splitlines() == moves


def test_live_models_that_lie_right_or_are_not_needed_stay(
    make_config: MakeConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    config = make_config(**{"log.progress": True})
    student, teacher = live(), live(seed=1)
    pointers = [parameter.data_ptr() for parameter in student.module.parameters()]
    load_models(config, resolve(config), student, teacher, torch.device("cpu"))
    assert [parameter.data_ptr() for parameter in student.module.parameters()] == pointers
    assert capsys.readouterr().err == ""
    alone = make_config(method="sft")
    assert load_models(alone, resolve(alone), student, teacher, torch.device("meta")) == (student, [])
    assert (student.device.type, teacher.device.type) == ("meta", "cpu")


@pytest.mark.parametrize("role", ["student", "teacher"])
@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (
            "quantised",
            r"lies on cpu, the run is on meta, and a model that is quantised cannot be moved: load it on meta",
        ),
        (
            "spread",
            r"lies on cpu and meta, the run is on meta, and a model that is spread over several devices cannot be",
        ),
    ],
)
def test_a_live_model_that_cannot_be_moved_is_found_before_an_earlier_run_is_overwritten(
    role: str, kind: str, message: str, make_config: MakeConfig
) -> None:
    config = make_config(overwrite=True, **{"train.device": "meta"})
    (config.output / "checkpoints" / "step-00000003").mkdir(parents=True)
    models: dict[str, Any] = {"student": live(), "teacher": live(seed=1)}
    if kind == "quantised":
        models[role].config.quantization_config = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    else:
        models[role].base.model.embed_tokens.to("meta")
    with pytest.raises(UserError, match=rf"^the {role} \(tiny-llama\) {message}"):
        prepare(config, **models)
    assert (config.output / "checkpoints" / "step-00000003").exists()
