from __future__ import annotations

import json
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.conftest import PAD, build_model, build_prompts, tokenizer
from tutelage.data.batching import micro_batches, token_weights
from tutelage.errors import UserError
from tutelage.models import load
from tutelage.models.language_model import LanguageModel
from tutelage.tasks import encode
from tutelage.tasks.encode import chosen
from tutelage.teacher.local import LocalTeacher
from tutelage.train import checkpoint, setup
from tutelage.train.config import Config
from tutelage.train.setup import (
    check_data,
    check_output,
    holds_run,
    pick_device,
    prepare,
    prepare_output,
)
from tutelage.types import SampledToken

MakeConfig = Callable[..., Config]
PROMPTS = build_prompts()


def live(family: str = "llama", **options: Any) -> LanguageModel:
    return build_model(family, with_tokenizer=True, dtype=torch.float32, **options)


def test_the_teachers_positions_count_too(make_config: MakeConfig) -> None:
    config = make_config(**{"rollout.max_new_tokens": 97})
    teacher = live("bart")
    teacher.config.decoder_start_token_id = PAD  # as the student's
    with pytest.raises(UserError, match="tiny-bart has 96 positions in its decoder"):
        prepare(config, student=live("t5"), teacher=teacher)


def test_prompts_of_a_given_split_need_the_positions_of_the_longest_not_of_the_limit(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_config(**{"task.max_prompt_tokens": 500, "overwrite": True})
    parts, _ = prepare(config, student=live("gpt2"), teacher=live("gpt2", seed=1))
    assert parts.student.model.max_positions == 96
    monkeypatch.setattr(encode, "_MANY", 0)  # generated while it is trained on: any length may come
    with pytest.raises(UserError, match=r"tiny-gpt2 has 96 positions, but it is to read prompts of up to 500"):
        prepare(config, student=live("gpt2"), teacher=live("gpt2", seed=1))


@pytest.mark.parametrize(
    ("student", "teacher", "message"),
    [
        (
            "t5",
            "gpt2",
            r"the student \(tiny-t5\) is an encoder-decoder, the teacher \(tiny-gpt2\) a decoder-only model",
        ),
        ("t5", "bart", r"student \(tiny-t5\) start behind the tokens \(0,\), .*teacher \(tiny-bart\) behind \(2,\)"),
    ],
)
def test_pairs_that_cannot_read_one_micro_batch(
    student: str, teacher: str, message: str, make_config: MakeConfig
) -> None:
    with pytest.raises(UserError, match=message):
        prepare(make_config(), student=live(student), teacher=live(teacher))


def with_turns(model: LanguageModel, template: str | None) -> LanguageModel:
    """The model with a tokenizer of its own, whose chat template closes turns with <unk> (the id 3), not with </s>."""
    model.tokenizer = deepcopy(model.tokenizer)
    model.tokenizer.chat_template = template
    return model


TURNS = "{% for m in messages %}{{ m['content'] }}<unk>{% endfor %}"


@pytest.mark.parametrize(("use_chat", "ends"), [("auto", {2, 3, 9}), ("never", {2, 9})])
def test_student_and_teacher_stop_at_the_same_tokens(use_chat: str, ends: set[int], make_config: MakeConfig) -> None:
    student, teacher = with_turns(live(), TURNS), live(seed=1)
    teacher.base.generation_config.eos_token_id = [2, 9]
    config = make_config(**{"task.use_chat": use_chat})
    parts, _ = prepare(config, student=student, teacher=teacher)
    assert parts.student.model.eos_ids == teacher.eos_ids == ends
    load.save(student, config.output / "model")
    saved = json.loads((config.output / "model" / "generation_config.json").read_text())
    assert set(saved["eos_token_id"]) == ends


def test_chats_are_trained_to_end_with_the_turn(make_config: MakeConfig) -> None:
    config = make_config(**{"task.use_chat": "always", "student_data_fraction": 0.0})
    parts, _ = prepare(config, student=with_turns(live(), TURNS), teacher=live(seed=1))
    assert {rollout.completion_ids[-1] for rollout in parts.source.next(0)} == {3}


def test_a_live_teacher_marks_without_dropout(make_config: MakeConfig) -> None:
    teacher = live(dropout=0.5, seed=1)
    teacher.module.train()
    parts, _ = prepare(make_config(), student=live(), teacher=teacher)
    assert parts.teacher is not None
    assert not any(module.training for module in parts.teacher.model.module.modules())  # type: ignore[attr-defined]


def test_the_seed_decides_fresh_weights_and_dropout(make_config: MakeConfig) -> None:
    drawn = []
    for seed in (1, 1, 2):
        config = make_config(seed=seed, student_model={"init": "config"})
        parts, _ = prepare(config)
        drawn.append((parts.student.model.head.weight.detach().clone(), torch.rand(3)))
    assert torch.equal(drawn[0][0], drawn[1][0])
    assert torch.equal(drawn[0][1], drawn[1][1])
    assert not torch.equal(drawn[0][0], drawn[2][0])


def test_without_a_teacher_the_tokenizer_must_fit_the_student(make_config: MakeConfig) -> None:
    with pytest.raises(UserError, match="the tokenizer has ids up to 225, but the lower head has only 64 rows"):
        prepare(make_config(method="sft"), student=live(vocab=64))


def test_a_share_of_the_training_examples_is_part_of_the_run(make_config: MakeConfig) -> None:
    changes: dict[str, Any] = {"seed": 3, "train.batch_size": 5}
    parts, _ = prepare(make_config(**changes, **{"task.train_fraction": 0.25}))
    ids = {draw.prompt.id for step in range(4) for draw in parts.source.draws(step)}
    assert ids == set(chosen(20, 0.25, 3))  # five of twenty examples, again and again
    begin(make_config(**changes, **{"task.train_fraction": 0.25, "overwrite": True}))
    with pytest.raises(UserError, match=r"task\.train_fraction: 0\.25 there, 0\.5 now"):
        check_output(make_config(**changes, **{"task.train_fraction": 0.5, "resume": True}))


def test_devices() -> None:
    assert pick_device("cpu") == torch.device("cpu")
    if not torch.cuda.is_available():
        assert pick_device(None) == torch.device("cpu")
        with pytest.raises(UserError, match="the device is cuda:0, but torch sees no CUDA device"):
            pick_device("cuda:0")
    with pytest.raises(UserError, match="the device is gpu, which torch does not know; use cpu, cuda"):
        pick_device("gpu")


def test_a_device_beyond_those_that_are_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert pick_device("cuda:1") == torch.device("cuda:1")
    with pytest.raises(UserError, match="the device is cuda:2, but torch sees 2 CUDA devices; use cuda:0 to cuda:1"):
        pick_device("cuda:2")
    with pytest.raises(UserError, match="the device is mps, but torch sees none"):
        pick_device("mps")


def begin(config: Config) -> None:
    """A run that has got to its first sequences."""
    check_output(config)
    prepare_output(config, PROMPTS)
    for name in ("rollouts", "checkpoints/step-00000003", "evaluation/before", "model"):
        (config.output / name).mkdir(parents=True)
    (config.output / "rollouts" / "rollouts.jsonl").write_text("{}\n")
    for name in ("metrics.jsonl", "failed-step-00000004.json", "notes.txt"):
        (config.output / name).write_text("")


def test_an_earlier_run_is_kept_unless_told(make_config: MakeConfig) -> None:
    config = make_config()
    begin(config)
    assert holds_run(config.output)
    with pytest.raises(UserError, match=r"already holds a run: go on with it \(resume\), delete it \(overwrite\)"):
        check_output(config)
    check_output(make_config(resume=True))
    with pytest.raises(UserError, match=r"was written with another configuration .*seed: 0 there, 5 now"):
        check_output(make_config(resume=True, seed=5))


def test_overwriting_removes_what_the_run_wrote_and_nothing_else(make_config: MakeConfig) -> None:
    begin(make_config())
    config = make_config(overwrite=True, seed=5)
    check_output(config)
    assert holds_run(config.output)  # still there: the rest of the input is not checked yet
    prepare_output(config, PROMPTS)
    assert sorted(p.name for p in config.output.iterdir()) == ["config.yaml", "data.json", "notes.txt", "run.json"]
    assert json.loads((config.output / "run.json").read_text())["seed"] == 5


def test_overwriting_spares_a_folder_that_is_no_run(make_config: MakeConfig) -> None:
    config = make_config(overwrite=True)
    (config.output / "model").mkdir(parents=True)
    check_output(config)
    prepare_output(config, PROMPTS)
    assert (config.output / "model").exists()


def test_a_run_that_failed_its_checks_does_not_block_the_next(make_config: MakeConfig) -> None:
    config = make_config(student="no/such/folder")
    with pytest.raises(UserError, match="no model folder at 'no/such/folder'"):
        prepare(config)
    parts, _ = prepare(make_config())
    parts.log.close()
    again, _ = prepare(make_config(seed=7))  # nothing had been written yet
    assert again.source.seed == 7


def test_an_earlier_run_survives_a_failed_overwrite(make_config: MakeConfig) -> None:
    begin(make_config())
    config = make_config(overwrite=True, teacher="no/such/folder")
    with pytest.raises(UserError, match="no model folder"):
        prepare(config)
    assert (config.output / "checkpoints" / "step-00000003").exists()


def test_the_training_data_is_part_of_the_run(make_config: MakeConfig) -> None:
    config = make_config(resume=True, **{"task.data": "rows.jsonl"})
    check_data(config, PROMPTS)  # no run yet
    begin(config)
    check_data(config, PROMPTS)
    edited = [*PROMPTS[:-1], replace(PROMPTS[-1], reference_ids=(4, 2))]
    for other in (edited, PROMPTS[:-1]):
        with pytest.raises(
            UserError,
            match=rf"other training data: 6 examples there, {len(other)} of task\.data=rows\.jsonl now, .*start over \(overwrite\)",
        ):
            check_data(config, other)
    check_data(make_config(overwrite=True), edited)
    (config.output / "data.json").unlink()
    with pytest.raises(UserError, match=r"cannot be resumed: data\.json, the fingerprint .* is missing or damaged"):
        check_data(config, PROMPTS)


@pytest.mark.parametrize("content", [None, "{"])
def test_a_run_without_a_readable_record(content: str | None, make_config: MakeConfig) -> None:
    config = make_config(resume=True)
    begin(config)
    record = config.output / "run.json"
    record.unlink()
    if content is not None:
        record.write_text(content)
    with pytest.raises(UserError, match=r"cannot be resumed: run\.json, its configuration, is missing or damaged"):
        check_output(config)


def test_the_output_is_a_file(make_config: MakeConfig, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(
        UserError, match=r"cannot write to the output folder .*file/run: Not a directory; choose another"
    ):
        check_output(make_config(output=str(tmp_path / "file" / "run")))


def test_space_for_the_checkpoints_and_the_student(make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(setup, "require_space", lambda folder, needed: asked.append(needed))
    student = live()
    for resume in (False, True):
        parts, _ = prepare(
            make_config(resume=resume, **{"train.keep_checkpoints": 2}), student=student, teacher=live(seed=1)
        )
        parts.checkpoints.save(3, {})
    size = student.num_parameters
    assert asked == [3 * 12 * size + 4 * size, 2 * 12 * size + 4 * size]
    assert checkpoint.require_space is not setup.require_space


def test_the_folder_names_what_it_holds(make_config: MakeConfig) -> None:
    config = make_config()
    check_output(config)
    assert not holds_run(config.output)
    assert list(config.output.iterdir()) == []
    prepare_output(config, PROMPTS)
    assert sorted(p.name for p in config.output.iterdir()) == ["config.yaml", "data.json", "run.json"]
    assert not holds_run(config.output)


def first_loss(config: Config, teacher: LanguageModel | None = None) -> float:
    """The loss of the run's first micro-batch, under its own signal."""
    parts, _ = prepare(config, teacher=teacher)
    assert parts.engine is not None
    assert parts.teacher is not None
    parts.engine.publish(version=0)
    rollouts = parts.source.next(0)
    weights = token_weights(rollouts, config.loss.normalisation)
    (micro,) = micro_batches(rollouts, weights, parts.student.model, config.train.micro_batch_tokens)
    return parts.student(micro, parts.teacher.score(micro)).loss.item()


def test_a_top_k_signal_of_the_whole_vocabulary_gives_the_exact_loss_and_fewer_tokens_a_lower_one(
    make_config: MakeConfig,
) -> None:
    common: dict[str, Any] = {"divergence": "jsd(0.3)", "loss.temperature": 1.5, "overwrite": True}
    exact = first_loss(make_config(**common))
    vocab = len(tokenizer())
    whole = first_loss(make_config(**common, teacher_signal=f"topk({vocab})"))
    few = first_loss(make_config(**common, teacher_signal="topk(3)"))
    assert whole == pytest.approx(exact, rel=1e-5)
    assert 0 < few < 0.99 * exact


@pytest.mark.parametrize("signal", ["hidden", "topk(7)"])
def test_the_teacher_has_a_temperature_of_its_own(signal: str, make_config: MakeConfig) -> None:
    changes = {"teacher_signal": signal, "loss.temperature": 1.5, "divergence": "forward_kl", "overwrite": True}
    alone = first_loss(make_config(**changes, **{"loss.teacher_temperature": 0.4}))
    sharp = live(seed=1, hidden=32)
    with torch.no_grad():
        sharp.module.lm_head.weight.mul_(1.5 / 0.4)
    assert alone == pytest.approx(first_loss(make_config(**changes), teacher=sharp), rel=1e-5)
    assert abs(alone - first_loss(make_config(**changes))) > 0.1


def test_a_sampled_signal_gives_the_gradient_of_k2(make_config: MakeConfig) -> None:
    config = make_config(divergence="reverse_kl", teacher_signal="sampled")
    parts, _ = prepare(config)
    assert isinstance(parts.teacher, LocalTeacher)
    rollouts = parts.source.next(0)
    (micro,) = micro_batches(rollouts, token_weights(rollouts, "sequence"), parts.student.model, 8192)
    signal = parts.teacher.score(micro)
    assert isinstance(signal, SampledToken)
    student = parts.student.model
    logp = student.head.logits(student.hidden(micro)).log_softmax(-1).gather(1, micro.targets_N[:, None])[:, 0]
    wanted = (0.5 * (logp - signal.logp_N).square() * micro.weights_N).sum()
    assert parts.student(micro, signal).loss.item() == pytest.approx(wanted.item(), rel=1e-5)


@pytest.mark.parametrize(
    ("changes", "seen"),
    [
        ({"student_data_fraction": 0.5}, "student_data_fraction=0.5: a sampled signal"),
        ({"rollout.temperature": 0.7}, "rollout.temperature=0.7 and loss.temperature=1.0: a sampled signal"),
        ({"rollout.top_p": 0.9}, "rollout.top_p=0.9, rollout.top_k=0: a sampled signal"),
        ({"teacher_signal": "topk(5000)"}, r"teacher_signal=topk\(5000\), but the vocabulary has"),
    ],
)
def test_signals_that_do_not_fit_the_run(make_config: MakeConfig, changes: dict[str, Any], seen: str) -> None:
    with pytest.raises(UserError, match=seen):
        prepare(make_config(**{"divergence": "reverse_kl", "teacher_signal": "sampled", **changes}))
