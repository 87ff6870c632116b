"""Agreement of vocabularies: decided by tokenizers, heads cut to the shared height."""

import copy

import pytest
import torch

from tests.conftest import build_model, tokenizer
from tutelage.errors import UserError
from tutelage.models.vocabulary import agree

SIZE = 226


def test_padded_heads_are_cut_to_the_lower():
    student, teacher = (build_model("qwen2", with_tokenizer=True, vocab=SIZE + extra) for extra in (6, 30))
    assert agree(student, teacher) == SIZE + 6
    assert student.head.weight.shape[0] == teacher.head.weight.shape[0] == SIZE + 6
    hidden = torch.ones(16, dtype=torch.float64)
    full = teacher.base.get_output_embeddings()(hidden)
    torch.testing.assert_close(teacher.head.logits(hidden), full[: SIZE + 6])


def test_differing_tokens_are_named():
    student, teacher = build_model("llama", with_tokenizer=True), build_model("llama", with_tokenizer=True, vocab=230)
    teacher.tokenizer = copy.deepcopy(tokenizer())
    teacher.tokenizer.add_tokens(["<extra>"])
    with pytest.raises(
        UserError, match=r"226 tokens.*227 tokens.*1 ids differ.*id 226: student None, teacher '<extra>'"
    ):
        agree(student, teacher)


def test_too_low_a_head():
    student, teacher = (build_model("llama", with_tokenizer=True, vocab=height) for height in (200, SIZE))
    with pytest.raises(
        UserError, match=r"ids up to 225, but the lower head has only 200 rows \(student 200, teacher 226"
    ):
        agree(student, teacher)
    assert (student.vocab_size, teacher.vocab_size) == (200, SIZE)
