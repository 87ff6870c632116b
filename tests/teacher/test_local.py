"""The teacher in the same process."""

import pytest
import torch

from tests.conftest import build_model, fixed_rollouts, own_logits
from tutelage.data.batching import collate, token_weights
from tutelage.teacher.local import LocalTeacher


@pytest.mark.usefixtures("exact")
@pytest.mark.parametrize("family", ["gemma2", "t5"])
def test_the_signal_gives_the_teachers_own_logits(family):
    teacher, rollouts = build_model(family), fixed_rollouts()
    micro = collate(rollouts, token_weights(rollouts, "token"), teacher)
    signal = LocalTeacher(teacher).score(micro)
    with torch.no_grad():
        torch.testing.assert_close(
            signal.head.logits(signal.hidden_NH), own_logits(teacher, micro), rtol=1e-12, atol=1e-12
        )
    assert signal.hidden_NH.shape == (len(micro.targets_N), 16)
    assert not signal.hidden_NH.requires_grad


def test_the_head_is_cut_to_the_shared_vocabulary():
    teacher, rollouts = build_model("llama"), fixed_rollouts()
    micro = collate(rollouts, token_weights(rollouts, "token"), teacher)
    teacher.vocab_size = 60
    assert LocalTeacher(teacher).score(micro).head.vocab_size == 60
