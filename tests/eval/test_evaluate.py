"""Evaluation of tiny models against transformers' `generate`, and against counting by hand."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import Metaspace
from transformers import PreTrainedTokenizerFast

from tutelage.errors import UserError
from tutelage.eval.diversity import mean_self_bleu
from tutelage.eval.evaluate import evaluate, forced_tokens, tokens_behind
from tutelage.eval.signals import Estimate
from tutelage.eval.statistics import bootstrap_interval, pass_at_k
from tutelage.rewards.base import FunctionReward
from tutelage.rewards.rewarder import Rewarder
from tutelage.tasks.base import Example, Generation


def greedy_texts(model, prompts, max_new_tokens: int) -> list[str]:
    """Greedy completions by transformers' own `generate`, one prompt at a time."""
    texts = []
    for prompt in prompts:
        ids = torch.tensor([prompt.token_ids])
        out = model.base.generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=max_new_tokens
        )
        written = out[0, 1:] if model.is_encoder_decoder else out[0, len(prompt.token_ids) :]
        texts.append(model.tokenizer.decode(written, skip_special_tokens=True))
    return texts


def aimed_at(prompts, texts):
    """The prompts with examples of which every second one is right for `texts`."""
    words = [text.split()[-1] if i % 2 == 0 and text.split() else "absent" for i, text in enumerate(texts)]
    return [replace(prompt, example={"word": word}) for prompt, word in zip(prompts, words, strict=True)]


def test_greedy_score_equals_generate_by_hand(model, prompts, task) -> None:
    texts = greedy_texts(model, prompts, 8)
    aimed = aimed_at(prompts, texts)
    right = [prompt.example["word"] in text.split() for prompt, text in zip(aimed, texts, strict=True)]
    assert 0 < sum(right) < 6
    found = evaluate(model, task, aimed, temperatures=(0.0,), batch_rows=4)
    row = found.row("greedy")
    assert [completion.text for completion in found.completions] == texts
    assert row.value == pytest.approx(100 * sum(right) / 6)
    assert [completion.mark for completion in found.completions] == [float(mark) for mark in right]
    assert row.mean_length == pytest.approx(np.mean([completion.tokens for completion in found.completions]))
    stopped = [completion.finish_reason == "stop" for completion in found.completions]
    assert row.finish == {"stop": sum(stopped) / 6, "length": 1 - sum(stopped) / 6}
    assert row.interval is not None
    assert row.interval.low <= row.value <= row.interval.high
    assert (row.pass_at_k, row.self_bleu, row.distinct_2) == ({}, None, None)


def test_several_samples_a_prompt(make_model, prompts, task) -> None:
    model = make_model("llama")
    found = evaluate(model, task, prompts, temperatures=(0.0, 1.0), samples_per_prompt=4, seed=3)
    assert [row.decoding for row in found.rows] == ["greedy", "T=1"]
    assert [row.samples_per_prompt for row in found.rows] == [1, 4]
    sampled = [completion for completion in found.completions if completion.decoding == "T=1"]
    assert [(c.prompt_id, c.sample) for c in sampled] == [(i, s) for i in range(6) for s in range(4)]
    assert [c.reference for c in sampled] == [f"w{i} w{i + 1}" for i in range(6) for _ in range(4)]
    counts = [sum(f"w{i}" in c.text.split() for c in sampled if c.prompt_id == i) for i in range(6)]
    assert 0 < sum(counts) < 24
    row = found.row("T=1")
    assert row.pass_at_k.keys() == {1, 2, 4}
    for k, value in row.pass_at_k.items():
        assert value == pytest.approx(100 * np.mean([pass_at_k(4, c, k) for c in counts]))
    assert row.pass_at_k[1] == pytest.approx(row.value)
    assert row.self_bleu == pytest.approx(
        mean_self_bleu([[c.text for c in sampled[4 * i : 4 * i + 4]] for i in range(6)])
    )


def test_samples_are_the_same_whatever_the_batch_and_differ_by_seed(model, prompts, task) -> None:
    def texts(**options):
        found = evaluate(model, task, prompts, temperatures=(1.0,), samples_per_prompt=2, bootstrap=0, **options)
        return [completion.text for completion in found.completions]

    assert texts(batch_rows=3) == texts(batch_rows=64)
    assert texts(seed=1) != texts(seed=2)


def test_interval_resamples_prompts_not_samples(make_model, prompts, task) -> None:
    # A model that always writes the same: four samples of a prompt carry the information of one.
    model = make_model("llama")
    once = evaluate(model, task, aimed_at(prompts, greedy_texts(model, prompts, 8)), temperatures=(1e-4,))
    four = evaluate(
        model, task, aimed_at(prompts, greedy_texts(model, prompts, 8)), temperatures=(1e-4,), samples_per_prompt=4
    )
    assert once.rows[0].interval == four.rows[0].interval
    assert four.rows[0].self_bleu == pytest.approx(100.0)


def test_all_right_or_all_wrong_is_not_certain(model, prompts, task) -> None:
    texts = greedy_texts(model, prompts, 8)
    written = [(text.split() or [""])[-1] for text in texts]
    assert all(written)
    right = [replace(prompt, example={"word": word}) for prompt, word in zip(prompts, written, strict=True)]
    wrong = [replace(prompt, example={"word": "absent"}) for prompt in prompts]
    low, high = (evaluate(model, task, aimed, temperatures=(0.0,)).row("greedy").interval for aimed in (wrong, right))
    # Wilson 1927 for 0 of 6: z^2 / (6 + z^2).
    assert (low.low, low.high) == (0.0, pytest.approx(39.033, abs=1e-3))
    assert (high.low, high.high) == (pytest.approx(60.967, abs=1e-3), 100.0)


def test_the_reward_of_completions_is_measured_beside_the_metric(model, prompts, task) -> None:
    def length(prompt: str, completion: str, reference: str | None, example: Example) -> float:
        assert prompt.split(maxsplit=1)[0] == reference == example["word"]
        return float(len(completion))

    rewarder = Rewarder(FunctionReward("length", length), task, model.tokenizer)
    found = evaluate(
        model, task, prompts, temperatures=(0.0, 1.0), samples_per_prompt=2, bootstrap=50, rewarder=rewarder
    )
    assert len(found.completions) == 6 + 12
    assert [each.reward for each in found.completions] == [float(len(each.text)) for each in found.completions]
    spread = set()
    for row in found.rows:
        rewards = [each.reward for each in found.completions if each.decoding == row.decoding]
        by_prompt = np.reshape(rewards, (6, -1)).mean(1)
        assert row.reward.value == pytest.approx(by_prompt.mean())
        if by_prompt.min() == by_prompt.max():
            assert row.reward.interval is None
            continue
        # Samples of a prompt stay together.
        expected = bootstrap_interval(lambda chosen, means=by_prompt: means[chosen].mean(), 6, 50)
        assert (row.reward.interval.low, row.reward.interval.high) == pytest.approx((expected.low, expected.high))
        assert expected.low < expected.high
        spread.add(row.decoding)
    assert "T=1" in spread
    again = evaluate(model, task, prompts, temperatures=(0.0,), bootstrap=0, rewarder=rewarder)
    assert again.rows[0].reward == Estimate(found.rows[0].reward.value, None)
    without = evaluate(model, task, prompts, temperatures=(0.0,), bootstrap=0)
    assert without.rows[0].reward is None
    assert {each.reward for each in without.completions} == {None}


def test_beam_search_adds_a_row(model, prompts, task) -> None:
    found = evaluate(model, task, prompts, temperatures=(0.0,), num_beams=3, bootstrap=0)
    assert [row.decoding for row in found.rows] == ["greedy", "beam 3"]
    assert found.rows[1].interval is None
    assert len([c for c in found.completions if c.decoding == "beam 3"]) == 6


def test_teacher_block(make_model, prompts, task) -> None:
    student, teacher = make_model("t5", seed=1), make_model("t5", seed=2)
    found = evaluate(student, task, prompts, temperatures=(0.0, 1.0), bootstrap=20, teacher=teacher)
    assert set(found.divergence) == {"references", "greedy", "T=1"}
    assert found.divergence["references"].tokens == 18
    assert found.divergence["T=1"].tokens == sum(c.tokens for c in found.completions if c.decoding == "T=1")
    unlabelled = [replace(prompt, reference_ids=None) for prompt in prompts]
    itself = evaluate(student, task, unlabelled, temperatures=(1.0,), bootstrap=0, teacher=student)
    assert {completion.reference for completion in itself.completions} == {None}
    assert set(itself.divergence) == {"T=1"}
    assert itself.divergence["T=1"].forward_kl.value == pytest.approx(0.0, abs=1e-6)


def test_stop_texts_end_generation_and_are_cut(make_model, prompts, task) -> None:
    model = make_model("llama")
    texts = greedy_texts(model, prompts, 8)
    stop = texts[0].split()[2]
    task.generation = Generation(max_new_tokens=8, stop=(stop,))
    found = evaluate(model, task, prompts, temperatures=(0.0,), bootstrap=0)
    assert [completion.text for completion in found.completions] == [text.partition(stop)[0] for text in texts]
    first = found.completions[0]
    expected = texts[0].split().index(stop) + 2  # words up to the stop text, then the end-of-sequence token
    assert (first.finish_reason, first.tokens) == ("stop", expected)


def test_forced_continuation_is_written_during_decoding(model, prompts, task) -> None:
    def calculator(text: str) -> str | None:
        return "w16 w15" if len(text.split()) == 2 else None

    task.generation = Generation(max_new_tokens=8, continuation=calculator)
    found = evaluate(model, task, prompts, temperatures=(0.0,), bootstrap=0)
    forced = [c.text.split()[2:4] for c in found.completions if len(c.text.split()) > 4]
    assert forced
    assert all(words == ["w16", "w15"] for words in forced)


def test_inserted_text_is_tokenised_in_context() -> None:
    vocabulary = {token: i for i, token in enumerate(["▁a", "=", "7", "▁", "▁7", "=7"])}
    core = Tokenizer(BPE(vocabulary, [("▁", "7")], unk_token=None, fuse_unk=False))
    core.pre_tokenizer = Metaspace(prepend_scheme="always")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core)
    assert tokenizer.encode("7", add_special_tokens=False) == [4]  # alone: with a space before it
    assert tokens_behind(tokenizer, "=", "7") == (2,)


def test_nothing_is_forced_without_stop_texts_and_continuation(model, task) -> None:
    assert forced_tokens(model, task.generation) is None


def test_progress_counts_to_the_total(model, prompts, task) -> None:
    seen: list[tuple[int, int]] = []
    evaluate(
        model, task, prompts, temperatures=(0.0, 1.0), samples_per_prompt=2, num_beams=2, bootstrap=0,
        progress=lambda done, total: seen.append((done, total)),
    )  # fmt: skip
    assert seen[-1] == (24, 24)
    assert [done for done, _ in seen] == sorted({done for done, _ in seen})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperatures": (0.0,), "samples_per_prompt": 4}, "samples_per_prompt=4 needs a temperature above 0"),
        ({"temperatures": (-1.0,)}, "a temperature is 0"),
        ({"temperatures": ()}, "nothing to decode"),
    ],
)
def test_settings_that_make_no_sense(make_model, prompts, task, options, message) -> None:
    with pytest.raises(UserError, match=message):
        evaluate(make_model("llama"), task, prompts, **options)


def test_no_prompts_and_beams_with_a_calculator(make_model, prompts, task) -> None:
    with pytest.raises(UserError, match="no prompts"):
        evaluate(make_model("llama"), task, [])
    task.generation = Generation(continuation=lambda text: None)
    with pytest.raises(UserError, match="num_beams=2"):
        evaluate(make_model("llama"), task, prompts, num_beams=2)
