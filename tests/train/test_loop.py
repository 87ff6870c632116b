from __future__ import annotations

import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.conftest import build_model
from tutelage.data.batching import micro_batches, token_weights
from tutelage.errors import UserError
from tutelage.models.language_model import LanguageModel
from tutelage.models.load import add_lora
from tutelage.models.options import LoraConfig
from tutelage.train import loop
from tutelage.train.config import Config
from tutelage.train.loop import Parts, train
from tutelage.train.methods import METHODS
from tutelage.train.metrics import read_metrics
from tutelage.train.setup import prepare
from tutelage.types import MicroBatch, Rollout

GOLDEN = Path(__file__).parents[1] / "golden" / "gkd_llama.json"
REGENERATE = "TUTELAGE_REGENERATE=1 python -m pytest tests/train/test_loop.py -k golden"

MakeConfig = Callable[..., Config]


def forward_backward(parts: Parts, micro: MicroBatch) -> torch.Tensor:
    """One micro-batch by itself: adds its gradients and returns its loss (for tests and experiments)."""
    signal = parts.teacher.score(micro) if parts.teacher is not None else None
    loss = parts.student(micro, signal).loss
    loss.backward()
    return loss.detach()


def model(family: str, hidden: int, *, seed: int, dtype: torch.dtype = torch.float32, **options: Any) -> LanguageModel:
    return build_model(family, with_tokenizer=True, hidden=hidden, seed=seed, dtype=dtype, **options)


def parts_of(config: Config, family: str = "llama", dtype: torch.dtype = torch.float32, **options: Any) -> Parts:
    """A run on live models: a fresh student of hidden size 16, a teacher of 32."""
    student = model(family, 16, seed=0, dtype=dtype, **options)
    return prepare(config, student=student, teacher=model(family, 32, seed=1, dtype=dtype))[0]


def weights(parts: Parts) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in parts.student.named_parameters()}


def logged(parts: Parts) -> list[Rollout]:
    return [rollout for _, rollouts in parts.log for rollout in rollouts]


@pytest.mark.usefixtures("exact")
def test_one_step_is_plain_pytorchs(make_config: MakeConfig) -> None:
    """Written out: full logits, the paper's Eq. 1 and 2, autograd, AdamW."""
    config = make_config(student_data_fraction=0.0, **{"train.steps": 1, "train.betas": [0.9, 0.99]})
    parts = parts_of(config, dtype=torch.float64)
    record = train(parts, config).records[0]

    student: Any = model("llama", 16, seed=0, dtype=torch.float64).module
    teacher: Any = model("llama", 32, seed=1, dtype=torch.float64).module
    optimizer = torch.optim.AdamW(student.parameters(), lr=0.01, betas=(0.9, 0.99), weight_decay=0.0)
    rollouts = parts.log.read(0)
    losses = []
    for rollout in rollouts:
        ids = torch.tensor([rollout.prompt_ids + rollout.completion_ids])
        first = len(rollout.prompt_ids) - 1
        q = student(ids).logits[0, first:-1].softmax(-1)
        p = teacher(ids).logits[0, first:-1].softmax(-1).detach()
        m = (p + q) / 2
        losses.append(((p * (p / m).log() + q * (q / m).log()).sum(-1) / 2).mean())
    loss = torch.stack(losses).mean()
    loss.backward()
    norm = torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
    optimizer.step()

    assert len(rollouts) == 4
    assert record["loss"] == pytest.approx(loss.item(), rel=1e-10)
    assert record["grad_norm"] == pytest.approx(norm.item(), rel=1e-10)
    trained = dict(parts.student.module.named_parameters())
    for name, parameter in student.named_parameters():
        torch.testing.assert_close(trained[name], parameter, rtol=0, atol=1e-9)


def test_golden_losses(make_config: MakeConfig) -> None:
    rate = {"train.steps": 20, "train.learning_rate": 0.03, "train.warmup_steps": 2}
    config = make_config(student_data_fraction=0.5, **rate, **{"task.options.train_size": 8})
    losses = [record["loss"] for record in train(parts_of(config), config).records]
    if os.environ.get("TUTELAGE_REGENERATE"):
        GOLDEN.write_text(json.dumps({"command": REGENERATE, "losses": [round(loss, 6) for loss in losses]}, indent=1))
    assert losses == pytest.approx(json.loads(GOLDEN.read_text())["losses"], abs=1e-4)
    assert sum(losses[-5:]) < 0.95 * sum(losses[:5])


@pytest.mark.usefixtures("exact")
@pytest.mark.parametrize("normalisation", ["sequence", "token"])
@pytest.mark.parametrize("family", ["llama", "t5"])
def test_micro_batches_do_not_change_the_run(normalisation: str, family: str, make_config: MakeConfig) -> None:
    """Eight sequences at once, in parts, or one by one."""
    trained, norms = [], []
    for tokens in (100_000, 200, 1):
        config = make_config(
            family, output=f"{make_config().output}-{tokens}", student_data_fraction=0.5, fraction_unit="sequence",
            **{"train.steps": 3, "train.batch_size": 8, "train.micro_batch_tokens": tokens, "loss.normalisation": normalisation},
        )  # fmt: skip
        parts = parts_of(config, family, torch.float64)
        norms.append([record["grad_norm"] for record in train(parts, config).records])
        cuts = token_weights(parts.log.read(0), config.loss.normalisation)
        pieces = len(micro_batches(parts.log.read(0), cuts, parts.student.model, tokens))
        assert {100_000: pieces == 1, 200: 1 < pieces < 8, 1: pieces == 8}[tokens]
        trained.append(weights(parts))
    for other in trained[1:]:
        for name, value in trained[0].items():
            torch.testing.assert_close(other[name], value, rtol=0, atol=1e-8)
    assert norms[1] == pytest.approx(norms[0], rel=1e-8)
    assert norms[2] == pytest.approx(norms[0], rel=1e-8)


def test_metrics_hold_what_is_promised(make_config: MakeConfig) -> None:
    config = make_config(student_data_fraction=0.5, fraction_unit="sequence", **{"train.steps": 2})
    parts = parts_of(config)
    history = train(parts, config, evaluate=None)
    records = read_metrics(config.output / "metrics.jsonl")
    assert records == history.records
    for step, record in enumerate(records):
        rollouts = parts.log.read(step)
        lengths = [len(rollout.completion_ids) for rollout in rollouts]
        assert record["step"] == step + 1
        assert record["tokens"] == sum(lengths)
        assert record["completion_length"] == sum(lengths) / 4
        assert record["student_share"] == sum(rollout.source == "student" for rollout in rollouts) / 4
        reasons = [rollout.finish_reason for rollout in rollouts]
        assert record["finish"] == {reason: reasons.count(reason) / 4 for reason in ("stop", "length", "data")}
        assert min(record["forward_kl"], record["reverse_kl"], record["grad_norm"], record["loss"]) > 0
        assert 0 < record["student_entropy"] < math.log(226)
        assert 0 < record["teacher_entropy"] < math.log(226)
        assert 0 <= record["agreement"] <= 1
        assert {"rollout", "teacher", "update"} <= record["seconds"].keys()
    assert [record["learning_rate"] for record in records] == pytest.approx([0.01, 0.005])


def test_evaluations_join_the_metrics(make_config: MakeConfig) -> None:
    config = make_config(**{"train.steps": 5, "eval.every": 2, "eval.final": "validation", "eval.limit": 2})
    train(parts_of(config), config, evaluate=lambda done: {"accuracy": float(done)})
    records = read_metrics(config.output / "metrics.jsonl")
    assert [record.get("evaluation") for record in records] == [None, {"accuracy": 2.0}, None, {"accuracy": 4.0}, None]
    # Each with the step that it followed, the last one's too.
    evaluated = [record["seconds"].get("evaluate", 0.0) > 0 for record in records]
    assert evaluated == [False, True, False, True, False]


def test_a_loss_that_is_not_finite_stops_the_run_and_saves_the_batch(make_config: MakeConfig) -> None:
    config = make_config(**{"train.checkpoint_every": 1})
    parts = parts_of(config)
    train_step = parts.optimizer.step

    def poison(step: int, loss: torch.Tensor) -> Any:
        result = train_step(step, loss)
        if step == 1:
            parts.teacher.model.head.weight.data[5] = math.nan  # type: ignore[union-attr]
        return result

    parts.optimizer.step = poison  # type: ignore[method-assign, assignment]
    with pytest.raises(UserError, match=r"step 3: the loss is nan .* the weights were not updated") as raised:
        train(parts, config)
    failed = config.output / "failed-step-00000003.json"
    assert str(failed) in str(raised.value)
    saved = json.loads(failed.read_text())
    assert saved["step"] == 3
    assert saved["record"]["loss"] == "nan"
    batch = [tuple(rollout["completion_ids"]) for rollout in saved["rollouts"]]
    assert batch == [rollout.completion_ids for rollout in parts.log.read(2)]
    assert [record["step"] for record in read_metrics(config.output / "metrics.jsonl")] == [1, 2]
    loaded = parts.checkpoints.load()
    assert loaded is not None
    assert loaded[0] == 2
    for name, saved_weight in loaded[1]["optimizer"]["weights"].items():
        assert torch.equal(weights(parts)[name], saved_weight)


SOURCES = {
    "sft": {"dataset"}, "seqkd": {"teacher"}, "supervised_kd": {"dataset"}, "on_policy_kd": {"student"},
    "imitkd": {"dataset", "student"}, "f_distill": {"dataset", "student"}, "gkd": {"student"}, "rl_gkd": {"student"},
    "distillm": {"dataset", "student"}, "minillm": {"student"},
}  # fmt: skip


@pytest.mark.parametrize("family", ["llama", "t5"])
@pytest.mark.parametrize("method", METHODS)
def test_every_method_trains_on_its_sequences(method: str, family: str, make_config: MakeConfig) -> None:
    reward = (
        {"rl.reward": "accuracy"} if METHODS[method].needs_reward else {}
    )  # 0 for all: tiny students know no answer
    config = make_config(family, method=method, fraction_unit="sequence", **{"train.steps": 2}, **reward)
    parts = parts_of(config, family)
    before = weights(parts)
    records = train(parts, config).records
    assert {rollout.source for rollout in logged(parts)} == SOURCES[method]
    assert {rollout.policy_version for rollout in logged(parts) if rollout.source == "student"} <= {0, 1}
    assert ("forward_kl" in records[0]) == (METHODS[method].divergence is not None)
    if method != "minillm":  # a policy gradient's loss may be of either sign
        assert all(record["loss"] > 0 for record in records)
    moved = [name for name, value in weights(parts).items() if not torch.equal(value, before[name])]
    assert len(moved) == len(before)


def test_replayed_sequences_are_earlier_ones(make_config: MakeConfig) -> None:
    config = make_config(**{"rollout": {"replay": 8, "replay_schedule": "constant"}})
    parts = parts_of(config)
    train(parts, config)
    earlier = 0
    for step in range(8):
        for rollout in parts.log.read(step):
            assert rollout in parts.log.read(rollout.policy_version)
            earlier += rollout.policy_version < step
    assert 0 < earlier < 32
    assert {rollout.policy_version for rollout in parts.log.read(0)} == {0}


@pytest.mark.usefixtures("exact")
def test_the_clip_weights_earlier_sequences_only(make_config: MakeConfig) -> None:
    """At a clip of 1 no token weighs more: where a step draws from the buffer its loss is smaller, else the same."""
    records = {}
    for name, changes in {"alike": {}, "weighted": {"importance_clip": 1}}.items():
        rollout = {"replay": 8, "replay_schedule": "constant", **changes}
        config = make_config(output=f"{make_config().output}-{name}", rollout=rollout)
        parts = parts_of(config, dtype=torch.float64)
        records[name] = train(parts, config).records
    drawn = [{rollout.policy_version for rollout in parts.log.read(step)} != {step} for step in range(8)]
    first = drawn.index(True)
    losses = {name: [record["loss"] for record in records[name]] for name in records}
    assert losses["weighted"][:first] == losses["alike"][:first]
    assert losses["weighted"][first] < 0.99 * losses["alike"][first]
    assert "importance" in records["weighted"][0]["seconds"]


@pytest.mark.usefixtures("exact")
def test_the_gradient_through_sampling_is_of_the_students_sequences_only(make_config: MakeConfig) -> None:
    """Up to the first step that the student writes a run is the same without it."""
    records = {}
    for followed in (False, True):
        changes = {"student_data_fraction": 0.5, "loss.sequence_level": followed, "train.steps": 3, "seed": 5}
        config = make_config(output=f"{make_config().output}-{followed}", divergence="reverse_kl", **changes)
        parts = parts_of(config, dtype=torch.float64)
        records[followed] = train(parts, config).records
    shares = [record["student_share"] for record in records[True]]
    first = shares.index(1.0)
    assert first > 0
    for step in range(first + 1):
        plain, also = records[False][step], records[True][step]
        assert (plain["reverse_kl"], plain["tokens"]) == (also["reverse_kl"], also["tokens"])
        assert (plain["loss"] == also["loss"]) == (plain["grad_norm"] == also["grad_norm"]) == (step < first)
    assert records[False][first + 1]["reverse_kl"] != records[True][first + 1]["reverse_kl"]
    assert "returns" in records[True][0]["seconds"]


def test_policy_gradients_add_up() -> None:
    assert loop.add(None, [[1.0, 2.0], [3.0]]) == [[1.0, 2.0], [3.0]]
    assert loop.add([[0.5, -2.0], [1.0]], [[1.0, 2.0], [3.0]]) == [[1.5, 0.0], [4.0]]


@pytest.mark.usefixtures("exact")
def test_a_prefix_is_the_loss_on_sequences_cut_there(make_config: MakeConfig) -> None:
    """Cutting changes no earlier token of a causal model, and Eq. 2 then takes its means over what is left."""
    config = make_config(divergence="reverse_kl", **{"train.steps": 1, "loss.prefix_tokens": 3})
    parts = parts_of(config, dtype=torch.float64)
    student, teacher = (
        model("llama", hidden, seed=seed, dtype=torch.float64).module for hidden, seed in ((16, 0), (32, 1))
    )
    record = train(parts, config).records[0]
    rollouts, expected = parts.log.read(0), 0.0
    assert any(len(rollout.completion_ids) > 3 for rollout in rollouts)
    for rollout in rollouts:
        ids = torch.tensor([rollout.prompt_ids + rollout.completion_ids[:3]])
        first = len(rollout.prompt_ids) - 1
        logq, logp = (module(ids).logits[0, first:-1].log_softmax(-1) for module in (student, teacher))
        expected += (logq.exp() * (logq - logp)).sum(-1).mean().item() / len(rollouts)
    assert record["loss"] == pytest.approx(expected, rel=1e-10)


def test_seqkd_trains_on_the_teachers_own_likelihood(make_config: MakeConfig) -> None:
    config = make_config(method="seqkd", **{"train.steps": 1})
    parts = parts_of(config)
    loss = train(parts, config).records[0]["loss"]
    student: Any = model("llama", 16, seed=0).module
    expected = []
    for rollout in parts.log.read(0):
        ids = torch.tensor([rollout.prompt_ids + rollout.completion_ids])
        logp = student(ids).logits[0, len(rollout.prompt_ids) - 1 : -1].log_softmax(-1)
        expected.append(-logp.gather(1, torch.tensor(rollout.completion_ids)[:, None]).mean().item())
    assert loss == pytest.approx(sum(expected) / 4, rel=1e-5)


@pytest.mark.usefixtures("exact")
@pytest.mark.parametrize("family", ["llama", "t5"])
def test_gradient_checkpointing_gives_the_same_gradients(family: str, make_config: MakeConfig) -> None:
    gradients = []
    for checkpointed in (False, True):
        output = f"{make_config().output}-{checkpointed}"
        parts = parts_of(make_config(family, output=output, student_data_fraction=0.0), family, torch.float64)
        if checkpointed:
            parts.student.model.base.gradient_checkpointing_enable({"use_reentrant": False})
        parts.student.module.train()
        rollouts = parts.source.next(0)
        [micro] = micro_batches(rollouts, token_weights(rollouts, "sequence"), parts.student.model, 100_000)
        forward_backward(parts, micro)
        gradients.append({name: p.grad for name, p in parts.student.named_parameters()})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        assert gradient is not None
        torch.testing.assert_close(gradients[1][name], gradient, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("family", ["llama", "t5"])
def test_bfloat16_students_learn(family: str, make_config: MakeConfig) -> None:
    config = make_config(family, student_data_fraction=0.0, **{"train.steps": 6, "task.options.train_size": 4})
    parts = parts_of(config, family, torch.bfloat16)
    losses = [record["loss"] for record in train(parts, config).records]
    assert losses[-1] < 0.9 * losses[0]
    assert {p.dtype for p in parts.student.parameters()} == {torch.bfloat16}
    for name, master in parts.optimizer.masters.items():
        assert master.dtype == torch.float32
        assert torch.equal(master.bfloat16(), parts.optimizer.parameters[name])


def test_lora_trains_the_adapters_alone(make_config: MakeConfig) -> None:
    config = make_config(**{"train.steps": 3})
    student = add_lora(model("llama", 16, seed=0), LoraConfig(rank=2))
    parts = prepare(config, student=student, teacher=model("llama", 32, seed=1))[0]
    before = weights(parts)
    losses = [record["loss"] for record in train(parts, config).records]
    after = weights(parts)
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved == {name for name in before if "lora_" in name}
    assert all(math.isfinite(loss) for loss in losses)


def test_dropout_drops_while_training_and_never_while_writing(make_config: MakeConfig) -> None:
    config = make_config(**{"train.steps": 1, "rollout.temperature": 0.0})
    dropping = parts_of(config, dropout=0.5)
    losses = [train(dropping, config).records[0]["loss"]]
    plain_config = config.model_copy(update={"output": config.output.with_name("plain")})
    plain = parts_of(plain_config)
    losses.append(train(plain, plain_config).records[0]["loss"])
    assert [r.completion_ids for r in logged(dropping)] == [r.completion_ids for r in logged(plain)]
    assert losses[0] != pytest.approx(losses[1], rel=1e-3)


def test_the_failed_batch_is_told_in_words(tmp_path: Path) -> None:
    rollout = Rollout((1,), (2, 3), (-0.5, -math.inf), "stop", 4, 7, 0, "student")
    message = loop.save_failure(tmp_path, 9, [rollout], {"loss": math.inf, "grad_norm": 1.0})
    assert message.startswith("step 10: the loss is inf and the gradient norm 1.0; the weights were not updated.")
    assert "Start over (overwrite, or another output)" in message
    assert json.loads((tmp_path / "failed-step-00000010.json").read_text())["rollouts"][0]["prompt_id"] == 7
