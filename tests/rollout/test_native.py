"""The engine against transformers' `generate`, against exact distributions, and against itself in other batches."""

import itertools
import math
from collections import Counter
from dataclasses import replace

import pytest
import torch
import transformers
from transformers.generation.logits_process import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from tests.conftest import BOS, EOS, FAMILIES, PAD, build_config, build_model, build_prompts, own_logits
from tutelage.data.batching import collate
from tutelage.models.language_model import LanguageModel
from tutelage.rollout.base import Sampling
from tutelage.rollout.native import NativeEngine
from tutelage.types import Prompt

GREEDY = Sampling(12, temperature=0)
SAMPLED = Sampling(10, temperature=0.8, top_p=0.95, top_k=40)
PROMPTS = build_prompts()


def generate(model, prompts=PROMPTS, sampling=SAMPLED, seed=0, samples=None, **options):
    samples = [0] * len(prompts) if samples is None else samples
    return NativeEngine(model, **options).generate(prompts, sampling, samples=samples, seed=seed)


def completions(rollouts):
    return [r.completion_ids for r in rollouts]


def end_at(model, *tokens):
    """Makes these the tokens that end a completion."""
    model.base.generation_config.eos_token_id = sorted(set(tokens)) or None


def stopping_model(family, seed=0):
    """A model whose greedy completions of PROMPTS end at different steps, early ones included."""
    return stop_early(build_model(family, seed=seed))


def stop_early(model):
    """Chooses the tokens that end a completion of this model so that greedy ones end at different steps."""
    end_at(model)
    greedy = completions(generate(model, sampling=GREEDY))
    candidates = [
        {c[at] for c, at in zip(greedy, places, strict=True)} for places in [(1, 2, 4, 6, 8, 9), (2, 3, 5, 7, 9, 11)]
    ]
    pairs = [set(pair) for n in (1, 2) for pair in itertools.combinations(candidates[0] | candidates[1], n)]

    def lengths(ends):
        return [next((i + 1 for i, t in enumerate(c) if t in ends), len(c)) for c in greedy]

    end_at(model, *max(pairs, key=lambda ends: (len(set(lengths(ends))), sum(lengths(ends)))))
    return model


def generate_of_transformers(model, prompt, limit=12, use_cache=True):
    """Greedy, one prompt by itself: no padding, no batch."""
    ids = torch.tensor([prompt.token_ids])
    written = model.base.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        do_sample=False,
        max_new_tokens=limit,
        use_cache=use_cache,
        eos_token_id=sorted(model.eos_ids) or None,
        pad_token_id=0,
    )[0].tolist()
    return tuple(written[1 if model.is_encoder_decoder else len(prompt.token_ids) :])


@pytest.mark.usefixtures("exact")
@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_is_generate_of_transformers(family):
    model = stopping_model(family)
    expected = [generate_of_transformers(model, prompt) for prompt in PROMPTS]
    assert len({len(c) for c in expected}) >= 3  # rows do leave at different steps
    assert min(map(len, expected)) < 12
    for batch_rows in (None, 1, 4):
        rollouts = generate(model, sampling=GREEDY, batch_rows=batch_rows)
        assert completions(rollouts) == expected
    assert [r.prompt_ids for r in rollouts] == [p.token_ids for p in PROMPTS]
    for rollout in rollouts:
        stopped = rollout.completion_ids[-1] in model.eos_ids
        assert rollout.finish_reason == ("stop" if stopped else "length")
        assert stopped or len(rollout.completion_ids) == 12
        assert rollout.behaviour_logprobs == (0.0,) * len(rollout.completion_ids)


def of_unequal_depths(family, seed, encoder, decoder):
    """An encoder-decoder model with this many layers in each."""
    config = build_config(family, layers=encoder)
    config.update({"num_decoder_layers" if family == "t5" else "decoder_layers": decoder})
    module = transformers.AutoModelForSeq2SeqLM.from_config(config, dtype=torch.float64).eval()
    bias = [module.final_logits_bias] if family == "bart" else []
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in (*(p for p in module.parameters() if p.dim() > 1), *bias):
            weight.normal_(std=0.5, generator=generator)
    return LanguageModel(module, None, family)


@pytest.mark.usefixtures("exact")
@pytest.mark.parametrize(("encoder", "decoder"), [(1, 3), (3, 1)])
@pytest.mark.parametrize(("family", "seed"), [("t5", 0), ("bart", 1)])
def test_greedy_where_encoder_and_decoder_differ_in_depth(family, seed, encoder, decoder):
    model = stop_early(of_unequal_depths(family, seed, encoder, decoder))
    # Without the cache of transformers, which has as many layers as T5's encoder.
    expected = [generate_of_transformers(model, prompt, use_cache=False) for prompt in PROMPTS]
    assert len({len(c) for c in expected}) >= 3
    rollouts = generate(model, sampling=GREEDY)
    assert completions(rollouts) == expected


def bart_like(kind, seed):
    """As their published checkpoints: BART's decoder starts from </s> and <s> is forced behind it, Marian's from <pad>."""
    twos = ("encoder_layers", "decoder_layers", "encoder_attention_heads", "decoder_attention_heads")
    widths = {"d_model": 16, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32, "max_position_embeddings": 96}
    sizes = {**dict.fromkeys(twos, 2), **widths, "vocab_size": 64, "pad_token_id": PAD, "eos_token_id": EOS}
    if kind == "bart":
        config = transformers.BartConfig(**sizes, bos_token_id=BOS, decoder_start_token_id=EOS)
        module = transformers.BartForConditionalGeneration(config)
        module.generation_config.forced_bos_token_id = BOS
    else:
        config = transformers.MarianConfig(**sizes, decoder_start_token_id=PAD, decoder_vocab_size=64)
        module = transformers.MarianMTModel(config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in (*(p for p in module.parameters() if p.dim() > 1), module.final_logits_bias):
            weight.normal_(std=0.5, generator=generator)
    module.generation_config.forced_eos_token_id = None
    return LanguageModel(module.double().eval(), None, kind)


@pytest.mark.usefixtures("exact")
@pytest.mark.parametrize(("kind", "seed", "start"), [("bart", 9, (EOS, BOS)), ("marian", 4, (PAD,))])
def test_greedy_of_bart_and_marian_is_generate_of_transformers(kind, seed, start):
    model = bart_like(kind, seed)
    assert model.decoder_start_ids == start
    written = [generate_of_transformers(model, prompt, limit=11 + len(start)) for prompt in PROMPTS]
    assert {tokens[: len(start) - 1] for tokens in written} == {start[1:]}  # what is forced is no part of a completion
    expected = [tokens[len(start) - 1 :] for tokens in written]
    assert len(set(expected)) > 4  # the completions do depend on the prompt
    rollouts = generate(model, sampling=GREEDY)
    assert completions(rollouts) == expected
    micro = collate(rollouts, [[1.0] * len(c) for c in expected], model)
    # The loss sees the same distribution the tokens were taken from.
    assert own_logits(model, micro).argmax(-1).tolist() == [token for row in expected for token in row]


@pytest.mark.usefixtures("exact")
@pytest.mark.parametrize("family", FAMILIES)
def test_samples_belong_to_the_sequence(family):
    model = stopping_model(family)
    prompts = [*PROMPTS, PROMPTS[1], PROMPTS[1]]
    samples = [0, 3, 0, 1, 0, 0, 4, 5]
    together = generate(model, prompts, samples=samples)
    assert len({together[i].completion_ids for i in (1, 6, 7)}) > 1  # samples of one prompt
    order = [6, 2, 7, 5, 0, 3, 1, 4]
    shuffled = generate(model, [prompts[i] for i in order], samples=[samples[i] for i in order])
    alone = [generate(model, [p], samples=[s])[0] for p, s in zip(prompts, samples, strict=True)]
    for other in (
        [shuffled[order.index(i)] for i in range(8)],
        alone,
        generate(model, prompts, samples=samples, batch_rows=3),
    ):
        assert completions(other) == completions(together)
        for ours, theirs in zip(other, together, strict=True):
            assert ours.behaviour_logprobs == pytest.approx(theirs.behaviour_logprobs, abs=1e-10)
            assert replace(ours, behaviour_logprobs=None) == replace(theirs, behaviour_logprobs=None)
    assert completions(generate(model, prompts, samples=samples, seed=1)) != completions(together)


def warped(logits, sampling):
    """Log-probabilities after transformers' own filters, in their order in `generate`."""
    logits = TemperatureLogitsWarper(float(sampling.temperature))(None, logits)
    if sampling.top_k:
        logits = TopKLogitsWarper(sampling.top_k)(None, logits)
    if sampling.top_p < 1:
        logits = TopPLogitsWarper(sampling.top_p)(None, logits)
    return logits.log_softmax(-1)


@pytest.mark.usefixtures("exact")
@pytest.mark.parametrize("sampling", [Sampling(10), SAMPLED], ids=["plain", "filtered"])
@pytest.mark.parametrize("family", FAMILIES)
def test_behaviour_logprobs_are_those_of_a_full_forward_pass(family, sampling):
    model = stopping_model(family)
    rollouts = generate(model, sampling=sampling)
    micro = collate(rollouts, [[1.0] * len(r.completion_ids) for r in rollouts], model)
    with torch.no_grad():
        logp = warped(own_logits(model, micro), sampling).gather(1, micro.targets_N[:, None])[:, 0]
    ours = torch.tensor([value for r in rollouts for value in r.behaviour_logprobs], dtype=torch.float64)
    assert ours.min() < -1
    torch.testing.assert_close(ours, logp, rtol=1e-9, atol=1e-9)


def exact_distribution(model, prompt, sampling):
    """Probabilities of all completions of at most two tokens, by enumeration of full forward passes."""

    def following(written):
        rollout = generate(model, [prompt], replace(sampling, max_new_tokens=1))[0]
        rollout = replace(rollout, completion_ids=(*written, 0))
        micro = collate([rollout], [[1.0] * (len(written) + 1)], model)
        return warped(own_logits(model, micro), sampling)[-1].exp().tolist()

    outcomes = {}
    with torch.no_grad():
        for first, p in enumerate(following(())):
            if first in model.eos_ids or p == 0:
                outcomes[first,] = p
            else:
                outcomes.update({(first, second): p * q for second, q in enumerate(following((first,)))})
    return outcomes


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(2),
        Sampling(2, temperature=0.5),
        Sampling(2, top_k=3),
        Sampling(2, 1.3, top_p=0.8),
        Sampling(2, 1.5, 0.9, 5),
    ],
    ids=["plain", "temperature", "top_k", "top_p", "all"],
)
@pytest.mark.parametrize("family", ["llama", "t5"])
def test_frequencies_of_samples_are_the_exact_probabilities(family, sampling):
    model = build_model(family, vocab=7)
    prompt, n = Prompt(3, (4, 6, 5)), 4000
    expected = exact_distribution(model, prompt, sampling)
    assert sum(expected.values()) == pytest.approx(1.0, abs=1e-6)
    counts = Counter(completions(generate(model, [prompt] * n, sampling, samples=range(n))))
    assert counts.keys() <= {outcome for outcome, p in expected.items() if p > 0}
    # Chi-square over the outcomes that are expected 5 times or more; the rest is one cell.
    cells = [(counts[o], n * p) for o, p in expected.items() if n * p >= 5]
    statistic = sum((seen - mean) ** 2 / mean for seen, mean in cells)
    freedom = len(cells)
    assert freedom >= 3
    assert statistic < freedom + 4 * math.sqrt(2 * freedom)
    rare = n - sum(mean for _, mean in cells)
    assert abs(n - sum(seen for seen, _ in cells) - rare) < 4 * math.sqrt(rare + 1)


# --- forced tokens ----------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("exact")
@pytest.mark.parametrize("family", ["gpt2", "t5"])
def test_forced_tokens_replace_samples_and_steer_the_rest(family):
    model = build_model(family)
    end_at(model)
    seen = []

    def force(written):
        seen.append(written)
        return (7, 8, 9) if len(written) == 2 else None

    sampling = Sampling(8)
    rollouts = generate(model, sampling=sampling, force=force)
    free = generate(model, sampling=sampling)
    micro = collate(rollouts, [[1.0] * 8] * len(rollouts), model)
    with torch.no_grad():
        logp = own_logits(model, micro).log_softmax(-1).gather(1, micro.targets_N[:, None]).view(-1, 8)
    for row, (rollout, other) in enumerate(zip(rollouts, free, strict=True)):
        assert rollout.completion_ids[:2] == other.completion_ids[:2]
        assert rollout.completion_ids[2:5] == (7, 8, 9)
        assert rollout.behaviour_logprobs[2:5] == (0.0, 0.0, 0.0)
        for place in (0, 1, 5, 6, 7):
            assert rollout.behaviour_logprobs[place] == pytest.approx(logp[row, place].item(), abs=1e-9)
    assert {len(written) for written in seen} == {1, 2, 5, 6, 7}  # never asked while forced tokens are left


def test_a_forced_end_of_sequence_ends_and_the_limit_cuts():
    model = build_model("llama")
    end_at(model, 60)
    rollout = generate(model, PROMPTS[:1], GREEDY, force=lambda written: (5, 60, 5))[0]
    assert (rollout.completion_ids[1:], rollout.finish_reason) == ((5, 60), "stop")
    rollout = generate(model, PROMPTS[:1], Sampling(3, temperature=0), force=lambda written: (5, 6, 7, 8))[0]
    assert (rollout.completion_ids[1:], rollout.finish_reason) == ((5, 6), "length")


# --- state ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["gpt2", "t5", "bart"])
def test_dropout_is_off_while_writing_and_the_mode_comes_back(family):
    expected = completions(generate(build_model(family)))
    model = build_model(family, dropout=0.5)
    model.module.train()
    assert completions(generate(model)) == expected
    assert model.module.training
    model.module.eval()
    generate(model)
    assert not model.module.training


def test_the_mode_comes_back_after_an_error():
    model = build_model("llama")
    model.module.train()

    def force(written):
        raise RuntimeError("calculator broke")

    with pytest.raises(RuntimeError, match="calculator broke"):
        generate(model, force=force)
    assert model.module.training


def test_weights_are_shared_and_versions_written():
    model = build_model("llama")
    engine = NativeEngine(model)
    before = engine.generate(PROMPTS, SAMPLED, samples=[0] * 6, seed=0)
    with torch.no_grad():
        model.base.lm_head.weight.mul_(-1)
    engine.publish(version=4)
    after = engine.generate(PROMPTS, SAMPLED, samples=[2] * 6, seed=0)
    assert completions(before) != completions(after)
    assert {(r.policy_version, r.sample, r.source) for r in before} == {(0, 0, "student")}
    assert {(r.policy_version, r.sample, r.source) for r in after} == {(4, 2, "student")}
    teacher = engine.generate(PROMPTS, SAMPLED, samples=[0] * 6, seed=0, source="teacher")
    assert {(r.policy_version, r.source) for r in teacher} == {(-1, "teacher")}
    assert [r.prompt_id for r in teacher] == [p.id for p in PROMPTS]


@pytest.mark.parametrize("batch_rows", [None, 4])
def test_progress_counts_every_sequence_once(batch_rows):
    counted = []
    NativeEngine(stopping_model("llama"), batch_rows).generate(
        PROMPTS, GREEDY, samples=[0] * 6, seed=0, on_finished=counted.append
    )
    assert sum(counted) == 6
    assert len(counted) > 1


def test_no_prompts():
    assert generate(build_model("llama"), []) == []


def test_rows_past_the_vocabulary_are_never_drawn():
    model = build_model("llama")
    prompts = PROMPTS * 10
    drawn = {t for c in completions(generate(model, prompts, samples=range(60))) for t in c}
    assert max(drawn) >= 30
    model.vocab_size = 30
    cut = generate(model, prompts, samples=range(60))
    assert max(t for c in completions(cut) for t in c) < 30


def test_no_gradient_is_recorded():
    model = build_model("llama")
    generate(model)
    assert all(p.grad is None for p in model.module.parameters())
    assert not torch.is_inference_mode_enabled()
    assert torch.is_grad_enabled()
