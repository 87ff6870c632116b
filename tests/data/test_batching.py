"""Token weights and micro-batches, by hand."""

import math

import pytest
import torch

from tests.conftest import EOS, build_model, fixed_rollouts
from tutelage.data.batching import collate, micro_batches, policy_weights, token_weights
from tutelage.types import Rollout

TWO = [
    Rollout((5, 6, 7), (8, 9, EOS), None, "data", -1, 0, 0, "dataset"),
    Rollout((10,), (11, EOS), None, "data", -1, 1, 0, "dataset"),
]
LENGTHS = ((3, 4), (7, 1), (1, 6), (5, 5), (2, 3), (20, 3), (9, 2), (4, 4))


def test_sequence_weights_are_those_of_equation_2():
    weights = token_weights(fixed_rollouts(((3, 4), (2, 1))), "sequence")
    assert weights == [[1 / 8] * 4, [1 / 2]]  # 1 / (L_y * B)


def test_token_weights_are_equal():
    assert token_weights(fixed_rollouts(((3, 4), (2, 1))), "token") == [[1 / 5] * 4, [1 / 5]]


def test_a_prefix_takes_the_means_over_its_own_tokens():
    rollouts = fixed_rollouts(((3, 4), (2, 1), (1, 2)))
    assert token_weights(rollouts, "sequence", 2) == [[1 / 6, 1 / 6, 0, 0], [1 / 3], [1 / 6, 1 / 6]]
    assert token_weights(rollouts, "token", 2) == [[1 / 5, 1 / 5, 0, 0], [1 / 5], [1 / 5, 1 / 5]]
    for normalisation in ("sequence", "token"):
        assert token_weights(rollouts, normalisation, 4) == token_weights(rollouts, normalisation)


@pytest.mark.parametrize("prefix", [None, 1, 3])
@pytest.mark.parametrize("normalisation", ["sequence", "token"])
def test_weights_sum_to_one(normalisation, prefix):
    weights = token_weights(fixed_rollouts(LENGTHS), normalisation, prefix)
    assert math.fsum(w for row in weights for w in row) == pytest.approx(1.0, abs=1e-12)
    assert [len(row) for row in weights] == [completion for _, completion in LENGTHS]


def test_policy_weights_are_of_sequences_whatever_their_length():
    assert policy_weights(fixed_rollouts(((3, 4), (2, 1))), [0.5, -3.0]) == [[0.25] * 4, [-1.5]]


def test_policy_weights_follow_their_rows():
    rollouts, model = fixed_rollouts(LENGTHS), build_model("llama")
    policy = policy_weights(rollouts, [float(i - 3) for i in range(len(rollouts))])
    weights = token_weights(rollouts, "token")
    for micro in micro_batches(rollouts, weights, model, 30, policy):
        owners = [micro.rollouts[row].prompt_id for row in micro.row_N.tolist()]
        assert micro.policy_weights_N.tolist() == [(owner - 3) / len(rollouts) for owner in owners]
        assert micro.policy_weights_N.dtype == torch.float32
    assert micro_batches(rollouts, weights, model, 30)[0].policy_weights_N is None


@pytest.mark.parametrize("family", ["llama", "t5"])
@pytest.mark.parametrize("budget", [1, 12, 30, 10_000])
def test_micro_batches_keep_every_row_within_the_budget(family, budget):
    model, rollouts = build_model(family), fixed_rollouts(LENGTHS)
    weights = [[float(i)] * len(r.completion_ids) for i, r in enumerate(rollouts)]
    micros = micro_batches(rollouts, weights, model, budget)
    seen = [r.prompt_id for micro in micros for r in micro.rollouts]
    assert sorted(seen) == list(range(len(LENGTHS)))
    for micro in micros:
        for ids in (micro.input_ids_BL, micro.decoder_input_ids_BL):
            assert ids is None or ids.numel() <= budget or len(ids) == 1
        owners = [micro.rollouts[row].prompt_id for row in micro.row_N.tolist()]
        assert micro.weights_N.tolist() == owners  # weights follow their rows
    if budget == 1:
        assert len(micros) == len(LENGTHS)
    if budget == 10_000:
        assert len(micros) == 1


def test_rows_of_like_length_share_a_micro_batch():
    rollouts = fixed_rollouts(((2, 2), (20, 4), (3, 1), (21, 3)))
    micros = micro_batches(rollouts, token_weights(rollouts, "token"), build_model("llama"), 48)
    assert [[r.prompt_id for r in micro.rollouts] for micro in micros] == [[0, 2], [1, 3]]
    assert [tuple(micro.input_ids_BL.shape) for micro in micros] == [(2, 4), (2, 24)]


def test_collate_of_a_decoder_by_hand():
    micro = collate(TWO, [[0.1, 0.2, 0.3], [0.4, 0.5]], build_model("llama"))
    assert micro.input_ids_BL.tolist() == [[5, 6, 7, 8, 9, EOS], [10, 11, EOS, 0, 0, 0]]
    assert micro.attention_mask_BL.tolist() == [[1] * 6, [1, 1, 1, 0, 0, 0]]
    assert micro.position_ids_BL.tolist() == [[0, 1, 2, 3, 4, 5]] * 2
    assert micro.decoder_input_ids_BL is micro.decoder_attention_mask_BL is None
    assert micro.index_N.tolist() == [2, 3, 4, 6, 7]  # the position before each completion token
    assert micro.targets_N.tolist() == [8, 9, EOS, 11, EOS]
    assert micro.row_N.tolist() == [0, 0, 0, 1, 1]
    assert micro.weights_N.tolist() == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5])
    assert micro.weights_N.dtype == torch.float32
    assert micro.rollouts == tuple(TWO)


def test_collate_of_an_encoder_decoder_by_hand():
    model = build_model("bart")  # its decoder starts from token 2
    micro = collate(TWO, [[0.1, 0.2, 0.3], [0.4, 0.5]], model)
    assert micro.input_ids_BL.tolist() == [[5, 6, 7], [10, 0, 0]]
    assert micro.attention_mask_BL.tolist() == [[1, 1, 1], [1, 0, 0]]
    assert micro.decoder_input_ids_BL.tolist() == [[2, 8, 9], [2, 11, 0]]
    assert micro.decoder_attention_mask_BL.tolist() == [[1, 1, 1], [1, 1, 0]]
    assert micro.index_N.tolist() == [0, 1, 2, 3, 4]
    assert micro.targets_N.tolist() == [8, 9, EOS, 11, EOS]
    assert micro.row_N.tolist() == [0, 0, 0, 1, 1]


def test_a_forced_first_token_stands_before_the_completion():
    model = build_model("bart")
    model.base.generation_config.forced_bos_token_id = 1
    micro = collate(TWO, [[0.1, 0.2, 0.3], [0.4, 0.5]], model)
    assert micro.decoder_input_ids_BL.tolist() == [[2, 1, 8, 9], [2, 1, 11, 0]]
    assert micro.decoder_attention_mask_BL.tolist() == [[1, 1, 1, 1], [1, 1, 1, 0]]
    assert micro.index_N.tolist() == [1, 2, 3, 5, 6]  # token 1 is given, never a target
    assert micro.targets_N.tolist() == [8, 9, EOS, 11, EOS]


@pytest.mark.parametrize("family", ["llama", "t5"])
def test_the_predicting_position_sees_everything_before_its_target(family):
    """Every target is the next token after the inputs up to its index."""
    rollouts = fixed_rollouts(LENGTHS)
    micro = collate(rollouts, token_weights(rollouts, "token"), build_model(family))
    ids = micro.input_ids_BL if micro.decoder_input_ids_BL is None else micro.decoder_input_ids_BL
    for index, target, row in zip(micro.index_N.tolist(), micro.targets_N.tolist(), micro.row_N.tolist(), strict=True):
        assert index // ids.shape[1] == row
        column = index % ids.shape[1]
        following = rollouts[row].completion_ids if micro.decoder_input_ids_BL is not None else None
        if following is None:
            assert ids[row, column + 1] == target
        else:
            assert following[column] == target
