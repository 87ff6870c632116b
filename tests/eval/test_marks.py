"""Marks against full logits worked out in the test; texts of tokens; files."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from tests.conftest import build_model as build_arithmetic_model
from tests.conftest import build_module, tokenizer
from tests.eval.test_signals import logp_of
from tutelage.divergences import parse
from tutelage.errors import UserError
from tutelage.eval import marks
from tutelage.eval.marks import Choice, MarkedSequence, Marker, TokenMark, mark_rollouts
from tutelage.eval.signals import reference_rollouts
from tutelage.models.language_model import LanguageModel
from tutelage.rollout.base import Sampling
from tutelage.rollout.native import NativeEngine
from tutelage.tasks.base import Generation
from tutelage.teacher.mixture import TeacherMixture
from tutelage.types import Prompt


def token(value: float, text: str = "a", *, forced: bool = False) -> TokenMark:
    top = (Choice(text, 0.75, 5), Choice("b", 0.25, 6))
    return TokenMark(text, value, 2 * value, 3 * value, 0.75, 0.5, top, top, id=5, forced=forced)


def sequence(*values: float, prompt_id: int = 0) -> MarkedSequence:
    tokens = tuple(map(token, values))
    return MarkedSequence(prompt_id, 0, "student", "stop", "jsd(0.5)", "ask", "right", None, tokens)


@pytest.mark.parametrize(("temperature", "own"), [(1.0, None), (2.0, None), (2.0, 0.5)])
@pytest.mark.parametrize("family", ["llama", "t5"])
def test_marks_equal_those_of_the_full_logits(make_model, prompts, family, temperature, own) -> None:
    student, teacher = make_model(family, seed=1), make_model(family, seed=2, padding_rows=5)
    # Longest first: micro-batches come sorted by length, the result in the order given.
    rollouts = [replace(r, completion_ids=(*range(3, 9 - i), 1)) for i, r in enumerate(reference_rollouts(prompts))]
    words = student.tokenizer.convert_ids_to_tokens(range(20))
    temperatures = {"temperature": temperature, "teacher_temperature": own}
    found = mark_rollouts(student, teacher, rollouts, "jsd(0.9)", **temperatures, token_budget=20, budget_bytes=1000)
    assert [each.prompt_id for each in found] == [rollout.prompt_id for rollout in rollouts]
    for rollout, marked in zip(rollouts, found, strict=True):
        divisors = ((teacher, own or temperature), (student, temperature))
        p, q = ((logp_of(model, rollout) / divisor).log_softmax(-1) for model, divisor in divisors)
        for name in ("forward_kl", "reverse_kl"):
            values = [getattr(each, name) for each in marked.tokens]
            assert values == pytest.approx(parse(name).value(p, q).tolist(), rel=1e-4, abs=1e-5)
        assert [t.divergence for t in marked.tokens] == pytest.approx(
            parse("jsd(0.9)").value(p, q).tolist(), rel=1e-4, abs=1e-5
        )
        assert tuple(each.id for each in marked.tokens) == rollout.completion_ids
        targets = torch.tensor(rollout.completion_ids)[:, None]
        for logp, name, side in ((q, "student_probability", "student"), (p, "teacher_probability", "teacher")):
            chosen = logp.gather(1, targets).exp()[:, 0].tolist()
            assert [getattr(each, name) for each in marked.tokens] == pytest.approx(chosen, rel=1e-4)
            top = logp.topk(5)
            for k, each in enumerate(marked.tokens):
                choices = getattr(each, side)
                assert [choice.id for choice in choices] == top.indices[k].tolist()
                assert [choice.text.strip() for choice in choices] == [words[i] for i in top.indices[k]]
                expected = top.values[k].exp().tolist()
                assert [choice.probability for choice in choices] == pytest.approx(expected, rel=1e-4)


def test_the_texts_of_tokens_make_up_the_completion() -> None:
    student, teacher = (build_arithmetic_model("llama", with_tokenizer=True, seed=seed) for seed in (0, 1))
    (rollout,) = reference_rollouts([_prompt("Tom has 12 pens. How many", " 12 + 7 = 19\n#### 19")])
    (marked,) = mark_rollouts(student, teacher, [rollout], "reverse_kl")
    assert "".join(each.text for each in marked.tokens) == " 12 + 7 = 19\n#### 19</s>"
    assert [each.text for each in marked.tokens][:4] == [" 1", "2", " +", " 7"]
    assert marked.prompt == "Tom has 12 pens. How many"
    assert marked.completion == " 12 + 7 = 19\n#### 19"
    assert marked.divergence == "reverse_kl"


def _prompt(question: str, answer: str) -> Prompt:
    encode = tokenizer()
    return Prompt(4, tuple(encode(question).input_ids), (*encode(answer).input_ids, encode.eos_token_id))


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level one without merges: every byte is a token."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE({symbol: i for i, symbol in enumerate(["<pad>", "<s>", "</s>", *alphabet])}, []))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<pad>", bos_token="<s>", eos_token="</s>")


def test_no_byte_of_a_character_is_an_empty_text() -> None:
    words = byte_tokenizer()
    model = LanguageModel(build_module("llama", vocab=len(words)), words, "bytes")
    ids = tuple(words("é 你🙂!", add_special_tokens=False).input_ids)
    prompt = Prompt(0, tuple(words("?", add_special_tokens=False).input_ids), ids)
    (marked,) = mark_rollouts(model, model, reference_rollouts([prompt]), "forward_kl")
    assert [each.text for each in marked.tokens] == [*"\ufffd\ufffd \ufffd\ufffd\ufffd\ufffd\ufffd\ufffd\ufffd!"]
    assert marked.completion == "é 你🙂!"
    for each in marked.tokens:
        assert all(choice.text for choice in (*each.student, *each.teacher))
        written = {choice.text for choice in (*each.student, *each.teacher) if choice.id == each.id}
        assert written <= {each.text}


def test_references_and_teacher_texts_follow_the_prompt(model, prompts) -> None:
    rollouts = reference_rollouts(prompts[:2])[::-1]
    first, second = mark_rollouts(model, model, rollouts, "jsd(0.5)", prompts=prompts[:1], teacher_texts={1: "w9"})
    assert (first.prompt_id, first.reference, first.teacher) == (1, None, "w9")
    assert (second.prompt_id, second.reference, second.teacher) == (0, "w0 w1", None)
    assert all(each.divergence == pytest.approx(0, abs=1e-6) for each in first.tokens)


def test_a_marker_asks_the_same_prompts_with_the_same_draws(make_model, prompts, task) -> None:
    student, teacher = make_model("llama", seed=1), make_model("llama", seed=2)
    student.module.train()
    marker = Marker(student, teacher, task, prompts, "forward_kl", max_new_tokens=5, seed=3, sequences=4)
    first = marker.mark()
    assert [each.prompt_id for each in first] == [0, 1, 2, 3]
    assert marker.mark() == first
    assert student.module.training
    greedy = NativeEngine(teacher).generate(prompts[:4], Sampling(5, 0.0), samples=[0] * 4, seed=3)
    texts = [teacher.tokenizer.decode(rollout.completion_ids, skip_special_tokens=True) for rollout in greedy]
    assert [each.teacher for each in first] == texts
    own = NativeEngine(student).generate(prompts[:4], Sampling(5, 1.0), samples=[0] * 4, seed=3)
    assert [len(each.tokens) for each in first] == [len(rollout.completion_ids) for rollout in own]
    with torch.no_grad():
        student.module.lm_head.weight.mul_(-1)
    changed = marker.mark()
    assert [each.teacher for each in changed] == texts
    assert changed != first


def test_a_marker_knows_what_the_task_inserted(make_model, prompts, task) -> None:
    """Two words behind the first two, and the end behind a stop text."""
    student, teacher = make_model("llama", seed=1), make_model("llama", seed=2)

    def behind_two(text: str) -> str | None:
        return " w9 w9" if len(text.split()) == 2 else None

    task.generation = Generation(continuation=behind_two)
    marker = Marker(student, teacher, task, prompts, "forward_kl", max_new_tokens=7, temperature=0.0, sequences=6)
    found = []
    for marked in marker.mark():
        words = [each.text.strip().startswith("w") for each in marked.tokens]  # special tokens are none
        behind = next((i for i in range(len(words)) if sum(words[:i]) == 2), len(words))
        forced = [position for position, each in enumerate(marked.tokens) if each.forced]
        assert forced == [behind, behind + 1][: len(words) - behind]
        assert [marked.tokens[position].text.strip() for position in forced] == ["w9"] * len(forced)
        own = [each.divergence for position, each in enumerate(marked.tokens) if position not in forced]
        assert marks.mean_divergence(marked) == pytest.approx(math.fsum(own) / len(own))
        found += forced
    assert len(found) > 6
    texts = [each.text.strip() for each in marked.tokens]
    first = words.index(True)
    task.generation = Generation(stop=(texts[first],))
    stopped = Marker(student, teacher, task, prompts, "forward_kl", max_new_tokens=7, temperature=0.0).mark()[-1]
    assert [each.text.strip() for each in stopped.tokens] == [*texts[: first + 1], "</s>"]
    assert [each.forced for each in stopped.tokens] == [False] * (first + 1) + [True]


def test_a_marker_takes_the_losses_temperatures(make_model, prompts, task) -> None:
    student, teacher = make_model("llama", seed=1), make_model("llama", seed=2)
    temperatures = {"loss_temperature": 2.0, "teacher_temperature": 0.5}
    marker = Marker(student, teacher, task, prompts, "forward_kl", max_new_tokens=5, sequences=2, **temperatures)
    marked = marker.mark()
    written = NativeEngine(student).generate(prompts[:2], Sampling(5, 1.0), samples=[0] * 2, seed=0)
    for sequence, rollout in zip(marked, written, strict=True):
        p = (logp_of(teacher, rollout) / 0.5).log_softmax(-1)
        q = (logp_of(student, rollout) / 2.0).log_softmax(-1)
        expected = parse("forward_kl").value(p, q).tolist()
        assert [each.divergence for each in sequence.tokens] == pytest.approx(expected, rel=1e-4, abs=1e-5)


def test_several_teachers_mark_and_write_no_text(make_model, prompts, task) -> None:
    student, *teachers = (make_model("t5", seed=seed) for seed in (1, 2, 3))
    for each in teachers:
        each.module.train()
    mixture = TeacherMixture(teachers, (0.25, 0.75))
    (marked,) = Marker(student, mixture, task, prompts, "forward_kl", max_new_tokens=5, sequences=1).mark()
    assert marked.teacher is None
    (written,) = NativeEngine(student).generate(prompts[:1], Sampling(5, 1.0), samples=[0], seed=0)
    first, second = (logp_of(teacher, written) for teacher in teachers)
    p, q = (0.25 * first + 0.75 * second).log_softmax(-1), logp_of(student, written)
    expected = parse("forward_kl").value(p, q).tolist()
    assert [each.divergence for each in marked.tokens] == pytest.approx(expected, rel=1e-4, abs=1e-5)


def test_a_mark_that_is_not_a_number_stops(make_model, prompts) -> None:
    student, teacher = make_model("llama", seed=1), make_model("llama", seed=2)
    with torch.no_grad():
        teacher.module.lm_head.weight[5] = math.nan
    with pytest.raises(ValueError, match="NaN logits"):
        mark_rollouts(student, teacher, reference_rollouts(prompts), "jsd(0.5)")


def test_files_are_json_and_read_back(tmp_path: Path) -> None:
    saved = [
        sequence(0.25, math.inf),
        replace(sequence(0.5, prompt_id=1), prompt='"</script>\n\u2028 ✓', reference=None),
    ]
    path = marks.save(saved, tmp_path, 12)
    assert path == tmp_path / "marks" / "step-00000012.jsonl"
    lines = path.read_text(encoding="utf-8").split("\n")
    assert [json.loads(line, parse_constant=pytest.fail)["prompt_id"] for line in lines[:-1]] == [0, 1]
    assert marks.read(path) == saved
    marks.save(saved[:1], tmp_path, 2)
    assert list(marks.read_all(tmp_path).items()) == [(2, saved[:1]), (12, saved)]
    assert marks.read_all(tmp_path / "elsewhere") == {}


def test_files_without_ids_are_read(tmp_path: Path) -> None:
    """As they were before tokens had ids and completions a text of their own."""
    path = marks.save([sequence(0.25)], tmp_path, 1)
    line = json.loads(path.read_text())
    del line["completion"]
    for each in line["tokens"]:
        del each["id"], each["forced"]
        for side in ("student", "teacher"):
            each[side] = [choice[:2] for choice in each[side]]
    path.write_text(json.dumps(line) + "\n")
    ((each,),) = (found.tokens for found in marks.read(path))
    assert (each.id, each.forced, each.student) == (None, False, (Choice("a", 0.75), Choice("b", 0.25)))
    assert marks.read(path)[0].completion is None


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    path = marks.save([sequence(0.25), sequence(0.5)], tmp_path, 1)
    content = path.read_bytes()
    path.write_bytes(content[:-20])
    with pytest.raises(UserError, match=r"step-00000001\.jsonl, line 2: .*delete the file"):
        marks.read(path)


def test_mean_divergence_is_over_tokens() -> None:
    assert marks.mean_divergence(sequence(0.1, 0.2, 0.6)) == pytest.approx(0.3)


def test_mean_divergence_leaves_out_what_was_inserted() -> None:
    whole = replace(sequence(), tokens=(token(0.1), token(5.0, forced=True), token(0.3)))
    assert marks.mean_divergence(whole) == pytest.approx(0.2)
