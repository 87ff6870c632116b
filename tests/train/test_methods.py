from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tutelage.errors import UserError
from tutelage.train import config_io, methods


def objective(**raw: Any) -> methods.Objective:
    return methods.resolve(config_io.build({"student": "s", **needs(raw.get("method", "gkd")), **raw}))


def needs(method: str) -> dict[str, Any]:
    """What a method is refused without."""
    teacher = {} if method == "sft" else {"teacher": "t"}
    reward = {"rl.reward": "accuracy"} if methods.METHODS[method].needs_reward else {}
    return {**teacher, **reward}


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
        ("rl_gkd", "jsd(0.9)", 1.0, "dataset"),
        ("distillm", "skew_forward_kl(0.1)", 0.5, "dataset"),
        ("minillm", "reverse_kl", 1.0, "dataset"),
    ],
)
def test_presets_are_the_published_methods(
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


IDLE = [
    ({"method": "sft", "loss.temperature": 2.0}, "loss.temperature=2.0 has no effect: method=sft trains on the negative log-likelihood"),
    ({"method": "seqkd", "loss.temperature": 2.0}, "drop it, or use method=supervised_kd or gkd"),
    ({"train.matrix_learning_rate": 0.1}, "train.matrix_learning_rate=0.1 has no effect: train.optimizer=adamw has train.learning_rate"),
    ({"task.fixed_examples": 5}, "task.fixed_examples=5 has no effect: every sequence is the student's own"),
    ({"method": "sft", "teacher": "t"}, "teacher=t has no effect: method=sft has no teacher"),
    ({"method": "sft", "teacher": "t", "other_teachers": ["u"]}, "other_teachers=('u',) has no effect: method=sft has no teacher"),
    ({"method": "sft", "teacher_model.dtype": "bfloat16"}, "has no effect: method=sft has no teacher"),
    ({"method": "supervised_kd", "rollout.temperature": 1.0}, "rollout.temperature=1.0 has no effect: with student_data_fraction 0"),
    ({"student_data_fraction": 0, "rollout.top_p": 0.9}, "rollout.top_p=0.9 has no effect"),
    ({"method": "seqkd", "rollout.top_k": 0}, "rollout.top_k=0 has no effect"),
    ({"fixed_data": "teacher"}, "fixed_data=teacher has no effect: with student_data_fraction 1"),
    ({"method": "imitkd", "student_data_fraction": 1, "fixed_data": "dataset"}, "fixed_data=dataset has no effect"),
    ({"rollout.teacher_temperature": 1.0}, "rollout.teacher_temperature=1.0 has no effect: the teacher writes no"),
    ({"method": "sft", "loss.teacher_temperature": 0.5}, "loss.teacher_temperature=0.5 has no effect: method=sft trains on the"),
    ({"rl": {"reward": "bleu", "alpha": 0}, "loss.prefix_tokens": 5}, "loss.prefix_tokens=5 has no effect: with rl.alpha 0"),
    ({"method": "supervised_kd", "rollout.replay": 64}, "rollout.replay=64 has no effect: with student_data_fraction 0"),
    ({"rollout.replay_schedule": "constant"}, "rollout.replay_schedule=constant has no effect: no earlier sequences are kept"),
    ({"rollout.importance_clip": 2}, "rollout.importance_clip=2.0 has no effect: the current student writes all of its sequences"),
    ({"method": "minillm", "rollout": {"teacher_share": 0, "importance_clip": 2}}, "rollout.importance_clip=2.0 has no effect"),
    ({"student_data_fraction": 0, "rollout.importance_clip": 2}, "rollout.importance_clip=2.0 has no effect: with student_data_fraction"),
    ({"method": "seqkd", "rollout.teacher_share": 0.1}, "rollout.teacher_share=0.1 has no effect: with student_data_fraction 0"),
    ({"method": "sft", "loss.sequence_level": True}, "loss.sequence_level=True has no effect: method=sft trains on the negative"),
    ({"method": "supervised_kd", "loss.sequence_level": True}, "loss.sequence_level=True has no effect: with student_data_fraction 0"),
    ({"rl": {"reward": "bleu", "alpha": 0}, "loss.sequence_level": True}, "loss.sequence_level=True has no effect: with rl.alpha 0"),
    ({"rl.alpha": 0.1}, "rl.alpha=0.1 has no effect: there is no reward; drop it, or set rl.reward"),
    ({"rl.baseline": "none"}, "rl.baseline=none has no effect: there is no reward"),
    ({"rl.scorer_label": "a"}, "rl.scorer_label=a has no effect: there is no reward"),
    ({"rl": {"reward": "bleu", "scorer_label": "a"}}, "rl.scorer_label=a has no effect: rl.reward=bleu has no labels"),
    ({"rl": {"reward": "bleu", "alpha": 1, "baseline": "none"}}, "rl.baseline=none has no effect: with rl.alpha 1"),
    ({"rl": {"reward": "bleu", "alpha": 0}, "loss.normalisation": "token"}, "loss.normalisation=token has no effect: with rl.alpha 0"),
    ({"rl": {"reward": "bleu", "alpha": 0}, "teacher": None, "divergence": "jsd(0.1)"}, "divergence=jsd(0.1) has no effect: with rl"),
    ({"rl": {"reward": "bleu", "alpha": 0}, "teacher": None, "loss.temperature": 2}, "loss.temperature=2.0 has no effect: with rl"),
    ({"rl": {"reward": "bleu", "alpha": 0}, "teacher": None, "teacher_model.dtype": "bfloat16"}, "with rl.alpha 0 and no teacher"),
    ({"student_model": {"init": "teacher_layers", "layers": 2}}, "student=s has no effect: student_model.init=teacher_layers makes the"),
    ({"student": None, "student_model": {"init": "teacher_layers", "layers": 2, "revision": "x"}}, "student_model.revision=x has no"),
]  # fmt: skip


@pytest.mark.parametrize(("raw", "message"), IDLE)
def test_options_without_effect_are_refused(raw: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as raised:
        objective(**raw)
    assert message in str(raised.value)


@pytest.mark.parametrize(
    "raw",
    [
        {"method": "sft", "teacher": "t", "student": None, "student_model": {"init": "teacher_layers", "layers": 2}},
        {"student_model": {"init": "config", "revision": "x"}},  # of the student's config.json
        {"method": "sft", "rollout.max_new_tokens": 9},  # evaluations write as many
        {"method": "seqkd", "rollout.teacher_temperature": 1.0},
        {"train.optimizer": "muon", "train.matrix_learning_rate": 0.1},
        {"student_data_fraction": 0.5, "rollout.temperature": 0.7, "fixed_data": "teacher"},
        {"method": "sft", "loss.temperature": 1.0},  # the default, which changes nothing, may be named
        {"rl": {"reward": "scorer:x", "alpha": 0.2, "baseline": "none", "scorer_label": "a"}},
        {"rollout.samples_per_prompt": 4},  # of GKD too
        {"rollout": {"replay": 32, "replay_schedule": "falling"}, "loss.teacher_temperature": 0.5},
        {"rollout": {"teacher_share": 0.1, "importance_clip": 3}, "divergence": "forward_kl"},
        {"rollout": {"replay": 32, "importance_clip": 3}, "loss.sequence_level": True, "teacher_signal": "topk(8)"},
        {"rl.reward": "bleu", "loss.sequence_level": True},
        {"method": "sft", "loss.prefix_tokens": 5},
        {"rl": {"reward": "bleu", "alpha": 0}, "divergence": "jsd(0.1)", "loss.temperature": 2},  # measured
        {"rl": {"reward": "bleu", "alpha": 1}, "loss.normalisation": "token"},
    ],
)
def test_the_same_options_where_they_have_one(raw: dict[str, Any]) -> None:
    assert objective(**raw)


@pytest.mark.parametrize("method", methods.METHODS)
def test_a_saved_configuration_can_be_run_again(method: str, tmp_path: Path) -> None:
    """It names every option, those without effect at their defaults."""
    config = config_io.build({"student": "s", "method": method, **needs(method)})
    config_io.save(config, tmp_path / "config.yaml")
    assert config_io.build(config_io.load_yaml(tmp_path / "config.yaml")) == config


FOLDER = Path(__file__).parents[2] / "recipes"
OF_MANY_RUNS = {"compare", "reproduce"}
RECIPES = sorted(path for path in FOLDER.rglob("*.yaml") if path.parent.name not in OF_MANY_RUNS)


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_the_recipes_resolve(recipe: Path) -> None:
    assert methods.resolve(config_io.build(config_io.load_yaml(recipe)))


def test_a_signal_must_support_the_divergence() -> None:
    assert objective(teacher_signal="topk(8)", divergence="jsd(0.5)").divergence is not None
    with pytest.raises(UserError, match=r"jsd\(0\.5\)"):
        objective(teacher_signal="sampled", divergence="jsd(0.5)")


def test_the_likelihood_of_teacher_sequences_needs_no_signal() -> None:
    with pytest.raises(UserError, match=r"teacher_signal=topk\(8\) has no effect: method=seqkd"):
        objective(method="seqkd", teacher_signal="topk(8)")


def test_how_much_is_replayed() -> None:
    assert objective(method="distillm").replay == 1000
    assert objective(method="distillm", **{"rollout.replay": 0}).replay == 0
    assert objective(method="distillm", student_data_fraction=0).replay == 0
    assert objective(**{"rollout.replay": 64}).replay == 64
    assert objective().replay == 0


def test_how_sequences_are_written_weighed_and_followed() -> None:
    def of(**raw: Any) -> tuple[float, float | None, bool]:
        found = objective(**raw)
        return found.teacher_share, found.importance_clip, found.sequence_level

    assert of() == (0.0, None, False)
    assert of(method="minillm") == (0.2, 2.0, True)
    assert of(method="minillm", **{"rollout.teacher_share": 0}) == (0.0, None, True)
    assert of(method="minillm", **{"rollout.importance_clip": 5}) == (0.2, 5.0, True)
    assert of(method="minillm", **{"loss.sequence_level": False}) == (0.2, 2.0, False)
    assert of(method="minillm", student_data_fraction=0) == (0.0, None, False)
    assert of(**{"rollout.teacher_share": 0.5, "loss.sequence_level": False}) == (0.5, None, False)
    assert (
        of(method="minillm", teacher=None, **{"rl": {"reward": "bleu", "alpha": 0}, "rollout.teacher_share": 0})[2]
        is False
    )


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (
            {"method": "minillm", "divergence": "reverse_kl", "teacher_signal": "sampled"},
            "loss.sequence_level with teacher_signal=sampled: it needs the value of the divergence at every token",
        ),
        (
            {"rollout.teacher_share": 0.2, "loss.sequence_level": True},
            "loss.sequence_level with rollout.replay=0, rollout.teacher_share=0.2: the gradient through sampling is of the",
        ),
        (
            {"rollout.replay": 64, "loss.sequence_level": True},
            "loss.sequence_level with rollout.replay=64, rollout.teacher_share=0.0: the gradient through sampling is of the",
        ),
        ({"method": "minillm", "rl.reward": "bleu"}, "rl.reward=bleu with rollout.teacher_share=0.2: a policy gradient is of"),
        ({"rollout.teacher_share": 1}, "rollout.teacher_share: saw 1, needs less than 1"),
        ({"rl.reward": "bleu", "rollout.replay": 64}, "rl.reward=bleu with rollout.replay=64: a policy gradient is of sequences that the"),
        ({"rollout.replay": 31}, "rollout.replay=31 is less than the train.batch_size=32 sequences of a step"),
        (
            {"divergence": "reverse_kl", "teacher_signal": "sampled", "rollout.replay": 64},
            "teacher_signal=sampled with rollout.replay=64: a sampled signal is right only on tokens of the current student",
        ),
    ],
)  # fmt: skip
def test_own_sequences_that_do_not_fit_the_objective(raw: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as raised:
        objective(**raw)
    assert message in str(raised.value)


# --- rewards ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("alpha", "teacher", "needed"), [(0, None, False), (0, "t", True), (0.5, "t", True), (1, "t", True)]
)
def test_a_reward_alone_needs_no_teacher(alpha: float, teacher: str | None, needed: bool) -> None:
    found = objective(method="rl_gkd", teacher=teacher, **{"rl.alpha": alpha})
    assert found.needs_teacher is needed
    assert (found.divergence is not None) is needed


@pytest.mark.parametrize(
    ("alpha", "teacher", "alone"), [(0, None, True), (0, "t", False), (0.5, "t", False), (1, "t", False)]
)
def test_what_a_reward_alone_is(alpha: float, teacher: str | None, alone: bool) -> None:
    config = config_io.build(
        {"student": "s", "method": "rl_gkd", "teacher": teacher, "rl.reward": "bleu", "rl.alpha": alpha}
    )
    assert methods.is_reward_alone(config) is alone
    plain = config_io.build({"student": "s", "method": "gkd", "teacher": "t"})
    assert not methods.is_reward_alone(plain)


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        ({"method": "rl_gkd", "rl.reward": None}, "method=rl_gkd needs a reward: set rl.reward (accuracy,"),
        ({"method": "rl_gkd", "rl.alpha": 0.1, "teacher": None}, "method=rl_gkd needs a teacher"),
        ({"method": "imitkd", "rl.reward": "bleu"}, "rl.reward=bleu with student_data_fraction=0.5: a policy gradient is of the"),
        ({"method": "sft", "rl.reward": "bleu"}, "rl.reward=bleu with student_data_fraction=0.0"),
        ({"method": "imitkd", "rollout.samples_per_prompt": 2}, "rollout.samples_per_prompt=2 with student_data_fraction=0.5"),
        ({"rl.reward": "bleu", "rl.baseline": "group"}, "rl.baseline=group with rollout.samples_per_prompt=1: a sequence is its own"),
        ({"rl.reward": "bleu", "train.batch_size": 1}, "rl.baseline=leave_one_out with train.batch_size=1: there is no other"),
        ({"rollout.samples_per_prompt": 5}, "train.batch_size=32 is no multiple of rollout.samples_per_prompt=5"),
        (
            {"method": "imitkd", "rl.reward": "bleu", "rl.alpha": 1},
            "rl.reward=bleu with student_data_fraction=0.5: a reward is measured on the student's own sequences; set",
        ),
        (
            {"rl.reward": "bleu", "rl.alpha": 1, "rollout.replay": 64},
            "rl.reward=bleu with rollout.replay=64: a reward is measured on the prompts of the step, and earlier sequences have",
        ),
        ({"rl.reward": "bleu", "rl.alpha": 0.9, "rollout.teacher_share": 0.2}, "rl.reward=bleu with rollout.teacher_share=0.2: a policy"),
        ({"rl.reward": "bleu", "rl.alpha": 1.5}, "rl.alpha: saw 1.5, needs less than or equal to 1"),
    ],
)  # fmt: skip
def test_rewards_that_do_not_fit(raw: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as raised:
        objective(**raw)
    assert message in str(raised.value)


def test_the_same_options_where_they_fit() -> None:
    assert objective(**{"rl.reward": "bleu", "rl.baseline": "group", "rollout.samples_per_prompt": 2})
    assert objective(**{"rl.reward": "bleu", "rl.baseline": "none", "train.batch_size": 1})
    assert objective(method="on_policy_kd", **{"rl.reward": "bleu"})
    measured = {"rl.reward": "bleu", "rl.alpha": 1, "rollout.temperature": 0.7}
    assert objective(**measured, **{"rollout.teacher_share": 0.2}).teacher_share == 0.2
    assert objective(method="minillm", **{"rl.reward": "bleu", "rl.alpha": 1}).teacher_share == 0.2
