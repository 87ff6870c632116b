from __future__ import annotations

from typing import Any

import pytest

from tutelage.errors import UserError
from tutelage.train import config_io, methods


def objective(**raw: Any) -> methods.Objective:
    return methods.resolve(config_io.build({"student": "s", "teacher": "t", **raw}))


@pytest.mark.parametrize(
    ("method", "divergence", "fraction", "fixed_data"),
    [
        ("sft", None, 0.0, "dataset"),
        ("seqkd", None, 0.0, "teacher"),
        ("supervised_kd", "forward_kl", 0.0, "dataset"),
        ("on_policy_kd", "forward_kl", 1.0, "dataset"),
        ("imitkd", "forward_kl", 0.5, "dataset"),
        ("f_distill", "total_variation", 0.5, "dataset"),
        ("gkd", "jsd(0.5)", 1.0, "dataset"),
    ],
)
def test_presets_are_the_baselines_of_the_paper(
    method: str, divergence: str | None, fraction: float, fixed_data: str
) -> None:
    found = objective(method=method)
    assert (None if found.divergence is None else found.divergence.name) == divergence
    assert (found.student_data_fraction, found.fixed_data) == (fraction, fixed_data)


def test_options_go_before_the_preset() -> None:
    found = objective(method="gkd", divergence="reverse_kl", student_data_fraction=0.25, fixed_data="teacher")
    assert found.divergence is not None
    assert found.divergence.name == "reverse_kl"
    assert (found.student_data_fraction, found.fixed_data) == (0.25, "teacher")


def test_a_fraction_of_zero_is_kept() -> None:
    assert objective(method="gkd", student_data_fraction=0.0).student_data_fraction == 0.0


def test_likelihood_on_the_data_needs_no_teacher() -> None:
    assert not methods.resolve(config_io.build({"student": "s", "method": "sft"})).needs_teacher


@pytest.mark.parametrize("method", [name for name in methods.METHODS if name != "sft"])
def test_all_others_need_one(method: str) -> None:
    with pytest.raises(UserError, match=f"method={method} needs a teacher: set --teacher"):
        config_io.build({"student": "s", "method": method})


@pytest.mark.parametrize("method", ["sft", "seqkd"])
def test_likelihood_of_own_samples_is_refused(method: str) -> None:
    with pytest.raises(UserError, match=r"no use for student_data_fraction=0\.5"):
        objective(method=method, student_data_fraction=0.5)
