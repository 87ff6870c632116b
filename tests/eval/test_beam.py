"""Beam search: one beam is greedy decoding, many beams are exhaustive search, padding changes nothing."""

from itertools import product

import pytest
import torch
import transformers

import tests.conftest
from tutelage.eval.beam import beam_search
from tutelage.models.language_model import LanguageModel
from tutelage.rollout.base import Sampling
from tutelage.rollout.native import NativeEngine
from tutelage.types import Prompt


def test_one_beam_equals_the_greedy_rollouts(model, prompts) -> None:
    beams = beam_search(model, prompts, num_beams=1, max_new_tokens=8, batch_rows=4)
    greedy = NativeEngine(model).generate(prompts, Sampling(8, 0.0), samples=[0] * len(prompts), seed=0)
    assert [b.completion_ids for b in beams] == [g.completion_ids for g in greedy]
    assert [b.finish_reason for b in beams] == [g.finish_reason for g in greedy]
    assert [b.prompt_id for b in beams] == [p.id for p in prompts]


@pytest.mark.parametrize("forced", [None, 0])
def test_a_model_with_learned_encoder_positions(forced) -> None:
    """BART: its encoder counts positions from the first column, and its checkpoints force tokens at both ends."""
    model = tests.conftest.build_model("bart", dtype=torch.float32)
    own = model.base.generation_config
    own.update(forced_bos_token_id=forced, forced_eos_token_id=9, bad_words_ids=[[i] for i in range(3, 30)])
    prompts = tests.conftest.build_prompts()
    greedy = NativeEngine(model).generate(prompts, Sampling(8, 0.0), samples=[0] * 6, seed=0)
    assert {r.finish_reason for r in greedy} >= {"length"}  # where 9 would be forced
    for batch_rows in (1, 6):
        beams = beam_search(model, prompts, num_beams=1, max_new_tokens=8, batch_rows=batch_rows)
        assert [b.completion_ids for b in beams] == [g.completion_ids for g in greedy]
    assert model.base.generation_config is own
    wide = [beam_search(model, prompts, num_beams=3, max_new_tokens=8, batch_rows=n) for n in (3, 64)]
    assert [r.completion_ids for r in wide[0]] == [r.completion_ids for r in wide[1]]


@pytest.mark.parametrize("num_beams", [1, 3])
def test_a_decoder_deeper_than_its_encoder(num_beams) -> None:
    """The reference decodes without a cache: that of transformers has as many layers as T5's encoder."""
    config = tests.conftest.build_config("t5", layers=1)
    config.num_decoder_layers = 3
    module = transformers.T5ForConditionalGeneration(config).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in (p for p in module.parameters() if p.dim() > 1):
            weight.normal_(std=0.5, generator=generator)
    model, prompts = LanguageModel(module, None, "t5"), tests.conftest.build_prompts()
    found = beam_search(model, prompts, num_beams=num_beams, max_new_tokens=6, batch_rows=64)
    for rollout, prompt in zip(found, prompts, strict=True):
        ids = torch.tensor([prompt.token_ids])
        expected = module.generate(ids, num_beams=num_beams, do_sample=False, max_new_tokens=6, use_cache=False)
        assert list(rollout.completion_ids) == expected[0, 1:].tolist()
    assert len({rollout.completion_ids for rollout in found}) > 3


def test_batching_does_not_change_the_hypotheses(model, prompts) -> None:
    alone = beam_search(model, prompts, num_beams=3, max_new_tokens=6, batch_rows=1)
    together = beam_search(model, prompts, num_beams=3, max_new_tokens=6, batch_rows=64)
    assert [r.completion_ids for r in alone] == [r.completion_ids for r in together]


def test_wide_beam_finds_the_most_probable_sequence(make_model) -> None:
    model = make_model("llama", seed=4)
    model.base.generation_config.eos_token_id = None
    model.tokenizer.eos_token = None
    prompt = Prompt(id=0, token_ids=(5, 9))
    found = beam_search(model, [prompt], num_beams=20, max_new_tokens=2, batch_rows=20)[0]
    with torch.no_grad():
        first = model.base(torch.tensor([[5, 9]])).logits[0, -1].log_softmax(-1)
        then = model.base(torch.tensor([[5, 9, t] for t in range(20)])).logits[:, -1].log_softmax(-1)
    best = max(product(range(20), range(20)), key=lambda pair: float(first[pair[0]] + then[pair[0], pair[1]]))
    assert found.completion_ids == best
    assert found.finish_reason == "length"


@pytest.mark.parametrize("family", ["llama", "t5"])
def test_padding_rows_of_the_vocabulary_are_never_written(make_model, prompts, family) -> None:
    model = make_model(family, padding_rows=4)
    head = model.base.get_output_embeddings()
    with torch.no_grad():  # the padding rows win wherever they may compete
        head.weight[20:] = 3 * head.weight[:4].abs().max() * torch.sign(head.weight[:4])
    unmasked = model.base.generate(torch.tensor([prompts[3].token_ids]), max_new_tokens=6, num_beams=2, do_sample=False)
    assert int(unmasked.max()) >= 20
    rollouts = beam_search(model, prompts, num_beams=2, max_new_tokens=6, batch_rows=8)
    assert max(max(r.completion_ids) for r in rollouts) < 20


@pytest.fixture
def stopping(make_model) -> LanguageModel:
    """A model that ends some of its completions early."""
    model = make_model("llama", seed=3)
    head = model.base.get_output_embeddings()
    with torch.no_grad():
        head.weight[1] = head.weight.abs().sum(0)
    return model


def test_completions_end_behind_the_end_of_sequence(stopping, prompts) -> None:
    rollouts = beam_search(stopping, prompts, num_beams=2, max_new_tokens=12, batch_rows=8)
    for rollout in rollouts:
        assert (rollout.finish_reason == "stop") == (rollout.completion_ids[-1] == 1)
        assert 1 not in rollout.completion_ids[:-1]
    assert "stop" in {rollout.finish_reason for rollout in rollouts}


@pytest.mark.parametrize(
    "settings",
    [{"repetition_penalty": 5.0}, {"no_repeat_ngram_size": 1}, {"min_length": 15}, {"min_new_tokens": 10}],
)
def test_settings_of_the_checkpoint_do_not_leak_in(stopping, prompts, settings) -> None:
    plain = beam_search(stopping, prompts, num_beams=2, max_new_tokens=12, batch_rows=8)
    stopping.base.generation_config.update(**settings)
    again = beam_search(stopping, prompts, num_beams=2, max_new_tokens=12, batch_rows=8)
    assert [r.completion_ids for r in again] == [r.completion_ids for r in plain]
