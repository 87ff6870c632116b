"""How a batch is cut, ordered and padded cannot change its loss or its gradient: all families, signals, normalisations."""

from dataclasses import replace
from functools import lru_cache

import pytest
import torch
from torch.nn import functional as F

from tests.conformance import test_enumeration as enumeration
from tests.conftest import EOS, FAMILIES, build_model, fixed_rollouts
from tutelage import divergences
from tutelage.data.batching import collate, micro_batches, token_weights
from tutelage.models.student import Student
from tutelage.teacher.local import LocalTeacher

LOSSES = [None, "jsd(0.5)", "forward_kl", "reverse_kl", "total_variation"]  # None: negative log-likelihood
SETTINGS = [*((loss, "sequence") for loss in LOSSES), (None, "token"), ("jsd(0.5)", "token")]
SIGNALS = {k: f"topk({k})" for k in (1, 3)} | {enumeration.VOCAB: "topk(64)"}  # the models' whole vocabulary
PAIRS = [(divergence, SIGNALS.get(signal, signal)) for divergence, signal in enumeration.PAIRS]
HUGE = 10**6

pytestmark = pytest.mark.usefixtures("exact")


@lru_cache(maxsize=2)
def models(family):
    return build_model(family, seed=1), build_model(family, seed=2, hidden=24)


def widened(micro, extra):
    """The same micro-batch with `extra` more columns of padding in every tensor."""

    def pad(tensor):
        return None if tensor is None else F.pad(tensor, (0, extra))

    decodes = micro.decoder_input_ids_BL if micro.decoder_input_ids_BL is not None else micro.input_ids_BL
    rows, columns = micro.index_N // decodes.shape[1], micro.index_N % decodes.shape[1]
    length = micro.input_ids_BL.shape[1] + extra
    return replace(
        micro,
        input_ids_BL=pad(micro.input_ids_BL),
        attention_mask_BL=pad(micro.attention_mask_BL),
        position_ids_BL=torch.arange(length).expand(len(micro.input_ids_BL), length),
        decoder_input_ids_BL=pad(micro.decoder_input_ids_BL),
        decoder_attention_mask_BL=pad(micro.decoder_attention_mask_BL),
        index_N=rows * (decodes.shape[1] + extra) + columns,
    )


def gradient(family, divergence, micros, signal="hidden"):
    """Total loss and gradient (all parameters in one vector) of these micro-batches."""
    model, teacher = models(family)
    student = Student(model, None if divergence is None else divergences.parse(divergence))
    scorer = None if divergence is None else LocalTeacher(teacher, signal)
    student.zero_grad()
    total = 0.0
    for micro in micros:
        loss = student(micro, scorer.score(micro) if scorer is not None else None).loss
        loss.backward()
        total += loss.item()
    return total, torch.cat([p.grad.flatten() for p in student.parameters()])


def assert_same(result, expected):
    assert result[0] == pytest.approx(expected[0], rel=1e-10)
    assert expected[1].abs().max() > 1e-3
    assert torch.allclose(result[1], expected[1], rtol=1e-10, atol=1e-10)


def assert_cut_order_and_padding_change_nothing(family, divergence, normalisation, rollouts, signal="hidden"):
    model, _ = models(family)
    weights = token_weights(rollouts, normalisation)
    whole = [collate(rollouts, weights, model)]
    expected = gradient(family, divergence, whole, signal)

    by_row = micro_batches(rollouts, weights, model, token_budget=1)
    some = micro_batches(rollouts, weights, model, token_budget=20)
    assert [len(micros) for micros in (by_row, micro_batches(rollouts, weights, model, HUGE))] == [5, 1]
    assert 1 < len(some) < 5
    order = [3, 0, 4, 2, 1]
    shuffled = [rollouts[i] for i in order]
    permuted = [collate(shuffled, token_weights(shuffled, normalisation), model)]
    for micros in (by_row, some, permuted, [widened(whole[0], 5)]):
        assert_same(gradient(family, divergence, micros, signal), expected)


@pytest.mark.parametrize(("spelling", "normalisation"), SETTINGS)
@pytest.mark.parametrize("family", FAMILIES)
def test_cut_order_and_padding_change_nothing(family, spelling, normalisation):
    assert_cut_order_and_padding_change_nothing(family, spelling, normalisation, fixed_rollouts())


@pytest.mark.parametrize(("divergence", "signal"), PAIRS, ids=str)
@pytest.mark.parametrize("family", ["gemma2", "bart"])  # a soft-cap; a bias, behind an encoder
def test_no_divergence_from_any_signal_sees_cut_order_and_padding(family, divergence, signal):
    rollouts = [replace(rollout, source="student", policy_version=0) for rollout in fixed_rollouts()]  # for "sampled"
    assert_cut_order_and_padding_change_nothing(family, divergence, "sequence", rollouts, signal)


@pytest.mark.parametrize("family", FAMILIES)
def test_what_the_padding_is_made_of_changes_nothing(family):
    model, _ = models(family)
    rollouts = fixed_rollouts()
    weights = token_weights(rollouts, "sequence")
    expected = gradient(family, "jsd(0.5)", [collate(rollouts, weights, model)])
    pad = model.config.pad_token_id
    try:
        model.config.pad_token_id = EOS
        micro = collate(rollouts, weights, model)
    finally:
        model.config.pad_token_id = pad
    assert (micro.input_ids_BL == EOS).sum() > len(rollouts)  # it is the padding now
    assert_same(gradient(family, "jsd(0.5)", [micro]), expected)
    # and the end of every sequence is still among the tokens that count
    assert (micro.targets_N == EOS).sum() == len(rollouts)
    assert micro.weights_N[micro.targets_N == EOS].min() > 0


@pytest.mark.parametrize("family", FAMILIES)
def test_end_of_sequence_is_learned_when_it_is_the_padding(family):
    """The gradient of a row's last target alone, with the end-of-sequence token as padding, is not zero."""
    model, _ = models(family)
    rollouts = fixed_rollouts(((3, 4), (2, 1)))
    last = [[0.0] * (len(r.completion_ids) - 1) + [1.0] for r in rollouts]
    total, vector = gradient(family, None, [collate(rollouts, last, model)])
    logits = model.head.logits(model.hidden(collate(rollouts, last, model)))
    expected = -logits.log_softmax(-1)[[3, 4], EOS].sum()
    assert total == pytest.approx(expected.item(), rel=1e-10)
    assert vector.abs().max() > 1e-3


@pytest.mark.parametrize("spelling", [None, "jsd(0.5)"])
@pytest.mark.parametrize("family", FAMILIES)
def test_no_loss_on_prompts_and_padding(family, spelling):
    model, teacher = models(family)
    rollouts = fixed_rollouts()
    micro = collate(rollouts, token_weights(rollouts, "sequence"), model)
    signal = None if spelling is None else LocalTeacher(teacher).score(micro)
    states = []

    def keep(module, inputs, output):
        output.last_hidden_state.retain_grad()
        states.append(output.last_hidden_state)

    hook = model.decoder.register_forward_hook(keep)
    try:
        Student(model, None if spelling is None else divergences.parse(spelling))(micro, signal).loss.backward()
    finally:
        hook.remove()
    reached = states[0].grad.flatten(0, 1).abs().amax(-1).nonzero().flatten()
    assert reached.tolist() == sorted(micro.index_N.tolist())
