"""The marked page's data: the student's sequences token by token, with what each model expected at every position."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from pydantic import TypeAdapter, ValidationError
from pydantic_core import to_json
from torch import Tensor

from tutelage.data.batching import micro_batches, token_weights
from tutelage.divergences import Divergence, parse
from tutelage.errors import UserError
from tutelage.eval.evaluate import forced_tokens
from tutelage.eval.insertions import Insertions
from tutelage.fused import DEFAULT_BUDGET_BYTES, linear_divergence, teacher_sampled, teacher_topk
from tutelage.fused.base import shared_rows
from tutelage.models.language_model import LanguageModel
from tutelage.models.modes import without_dropout
from tutelage.rollout.base import Sampling
from tutelage.rollout.native import Force, NativeEngine
from tutelage.tasks.base import Task, cut
from tutelage.teacher.base import TeacherModel
from tutelage.teacher.local import LocalTeacher
from tutelage.types import FinishReason, HiddenStates, MicroBatch, Prompt, Rollout, SourceName

FOLDER = "marks"
DEFAULT_SEQUENCES = 16
_TOP = 5
_FILE = re.compile(r"step-(\d{8})\.jsonl")

TokenText = Callable[[int, int], str]


class Choice(NamedTuple):
    """A token a model could have written.

    Attributes:
        text: the token as it would stand there, leading space included.
        probability: the model's.
        id: the token: several may decode alike, bytes above all; None in files of earlier versions.
    """

    text: str
    probability: float
    id: int | None = None


@dataclass(frozen=True)
class TokenMark:
    """What the teacher makes of one completion token. Divergences in nats; infinite where a support is left.

    Attributes:
        text: the token as it stands in the completion, leading space included; bytes of an incomplete character appear
            as U+FFFD.
        divergence: the run's.
        forward_kl, reverse_kl: KL(teacher||student) and KL(student||teacher).
        student_probability, teacher_probability: each model's, of this token.
        student, teacher: each model's most probable tokens, most probable first.
        id: the token; None in files of earlier versions.
        forced: the task inserted it (a calculator's result, the end behind a stop text): nobody chose it, no mean counts it.
    """

    text: str
    divergence: float
    forward_kl: float
    reverse_kl: float
    student_probability: float
    teacher_probability: float
    student: tuple[Choice, ...]
    teacher: tuple[Choice, ...]
    id: int | None = None
    forced: bool = False


@dataclass(frozen=True)
class MarkedSequence:
    """One sequence with a mark for every token.

    Attributes:
        prompt_id, sample: which example, and which of its samples.
        source: who wrote the sequence.
        finish_reason: how it ended.
        divergence: spelling of the run's divergence.
        prompt: what the writer was given, special tokens left out.
        reference: the ground-truth completion; None where the data has none.
        teacher: what the teacher writes for the same prompt, greedily; None where it was not asked.
        tokens: the completion, end-of-sequence included.
        completion: its text, special tokens left out; None in files of earlier versions.
    """

    prompt_id: int
    sample: int
    source: SourceName
    finish_reason: FinishReason
    divergence: str
    prompt: str
    reference: str | None
    teacher: str | None
    tokens: tuple[TokenMark, ...]
    completion: str | None = None


class Marker:
    """Lets a student write the same prompts again and again over a run, and marks what it wrote.

    A prompt's randomness is keyed by seed and prompt, so that two steps differ by the student alone.

    Args:
        student, teacher: of one family, over the same vocabulary (`models.vocabulary.agree`). A teacher made of several marks,
            and writes no text of its own beside the student's.
        task: its stop texts and forced continuations hold during decoding.
        prompts: those written and marked; the first `sequences` of them.
        divergence: the run's, or its spelling.
        max_new_tokens: limit of a completion.
        temperature: the student's sampling temperature; 0: greedy.
        loss_temperature: divides both models' logits in what is measured.
        teacher_temperature: divides the teacher's in place of it, as in `LocalTeacher`; None: the same.
        seed: keys the samples.
        sequences: how many prompts.
        batch_rows: rows generated at a time; None: all.
    """

    def __init__(
        self,
        student: LanguageModel,
        teacher: TeacherModel,
        task: Task,
        prompts: Sequence[Prompt],
        divergence: Divergence | str,
        *,
        max_new_tokens: int,
        temperature: float = 1.0,
        loss_temperature: float = 1.0,
        teacher_temperature: float | None = None,
        seed: int = 0,
        sequences: int = DEFAULT_SEQUENCES,
        batch_rows: int | None = None,
    ) -> None:
        self._student, self._teacher, self._generation = student, teacher, task.generation
        self._prompts = list(prompts[:sequences])
        self._divergence = parse(divergence)
        self._loss_temperature, self._teacher_temperature = loss_temperature, teacher_temperature
        self._sampling, self._seed, self._batch_rows = Sampling(max_new_tokens, temperature), seed, batch_rows
        self._teacher_texts: Mapping[int, str] | None = None

    def mark(self) -> list[MarkedSequence]:
        """One sequence per prompt, in order, written and marked with the student's current weights."""
        if self._teacher_texts is None:  # the teacher never changes: asked once
            self._teacher_texts = self._texts_of(self._teacher) if isinstance(self._teacher, LanguageModel) else {}
        force = forced_tokens(self._student, self._generation)
        insertions = Insertions(force)
        rollouts = self._write(self._student, self._sampling, "student", None if force is None else insertions)
        return mark_rollouts(
            self._student,
            self._teacher,
            rollouts,
            self._divergence,
            forced=[insertions.positions(rollout.completion_ids) for rollout in rollouts],
            prompts=self._prompts,
            teacher_texts=self._teacher_texts,
            temperature=self._loss_temperature,
            teacher_temperature=self._teacher_temperature,
        )

    def _texts_of(self, teacher: LanguageModel) -> dict[int, str]:
        """Prompt id -> the teacher's greedy completion."""
        sampling = Sampling(self._sampling.max_new_tokens, 0.0)
        greedy = self._write(teacher, sampling, "teacher", forced_tokens(teacher, self._generation))
        decode = teacher.tokenizer.decode
        return {
            rollout.prompt_id: cut(decode(rollout.completion_ids, skip_special_tokens=True), self._generation.stop)
            for rollout in greedy
        }

    def _write(
        self, model: LanguageModel, sampling: Sampling, source: SourceName, force: Force | None
    ) -> list[Rollout]:
        engine = NativeEngine(model, self._batch_rows, force=force)
        samples = [0] * len(self._prompts)
        return engine.generate(self._prompts, sampling, samples=samples, seed=self._seed, source=source)


@torch.no_grad()
def mark_rollouts(
    student: LanguageModel,
    teacher: TeacherModel,
    rollouts: Sequence[Rollout],
    divergence: Divergence | str,
    *,
    forced: Sequence[frozenset[int]] | None = None,
    prompts: Sequence[Prompt] = (),
    teacher_texts: Mapping[int, str] | None = None,
    temperature: float = 1.0,
    teacher_temperature: float | None = None,
    token_budget: int = 8192,
    budget_bytes: int = DEFAULT_BUDGET_BYTES,
) -> list[MarkedSequence]:
    """Marks sequences, whoever wrote them; the [N, V] distributions are walked in chunks and never held.

    Args:
        student, teacher: of one family, over the same vocabulary (`models.vocabulary.agree`).
        rollouts: the sequences, in the order of the result.
        divergence: the run's, or its spelling.
        forced: of each rollout, the positions of tokens that its writer did not choose; None: it chose all.
        prompts: those of the rollouts, for their references; a rollout whose prompt is missing gets none.
        teacher_texts: the teacher's own completions by prompt id.
        temperature: divides both models' logits.
        teacher_temperature: divides the teacher's in place of it; None: the same.
        token_budget: most padded tokens in one forward pass.
        budget_bytes: of the vocabulary-wide buffers.

    Raises:
        UserError: the divergence does not parse, or a temperature is not positive.
        ValueError: a measure is not a number.
    """
    divergence, teacher_texts = parse(divergence), teacher_texts or {}
    decode, token_text = student.tokenizer.decode, _token_texts(student.tokenizer)
    references = _references(prompts, decode)
    # By the rollout's identity: micro-batches come sorted by length.
    inserted = {id(rollout): positions for rollout, positions in zip(rollouts, forced or (), strict=forced is not None)}
    marks: dict[int, tuple[TokenMark, ...]] = {}
    scorer = LocalTeacher(teacher, temperature=temperature, own_temperature=teacher_temperature)
    with without_dropout(student.module, teacher.module):
        for micro in micro_batches(rollouts, token_weights(rollouts, "token"), student, token_budget):
            lines = iter(_measure(student, scorer, micro, divergence, temperature, budget_bytes))
            for rollout in micro.rollouts:
                positions = inserted.get(id(rollout), frozenset())
                marks[id(rollout)] = tuple(_token_marks(rollout, student, lines, token_text, positions))
    return [
        MarkedSequence(
            prompt_id=rollout.prompt_id,
            sample=rollout.sample,
            source=rollout.source,
            finish_reason=rollout.finish_reason,
            divergence=str(divergence),
            prompt=decode(rollout.prompt_ids, skip_special_tokens=True),
            reference=references.get(rollout.prompt_id),
            teacher=teacher_texts.get(rollout.prompt_id),
            tokens=marks[id(rollout)],
            completion=decode(rollout.completion_ids, skip_special_tokens=True),
        )
        for rollout in rollouts
    ]


def _references(prompts: Sequence[Prompt], decode: Callable[..., str]) -> dict[int, str]:
    found = {prompt.id: prompt.reference_ids for prompt in prompts}
    return {number: decode(ids, skip_special_tokens=True) for number, ids in found.items() if ids is not None}


class _Line(NamedTuple):
    """The measures of one token; top tokens as ids."""

    divergence: float
    forward_kl: float
    reverse_kl: float
    student_probability: float
    teacher_probability: float
    student: list[tuple[int, float]]
    teacher: list[tuple[int, float]]


def _measure(
    student: LanguageModel,
    teacher: LocalTeacher,
    micro: MicroBatch,
    divergence: Divergence,
    temperature: float,
    budget_bytes: int,
) -> Iterator[_Line]:
    """The measures of every completion token, in the order of `micro.targets_N`."""
    signal = teacher.hidden_states(micro)
    own_head, their_head = shared_rows(student.head, signal.head)
    own, theirs = HiddenStates(student.hidden(micro), own_head), HiddenStates(signal.hidden_NH, their_head)
    _, stats = linear_divergence(
        own.hidden_NH, own.head, theirs.hidden_NH, theirs.head, divergence, micro.weights_N,
        temperature, budget_bytes, return_stats=True,
    )  # fmt: skip
    assert stats.forward_kl is not None  # optional only for the negative log-likelihood, which has no teacher
    assert stats.reverse_kl is not None
    measures = [stats.divergence, stats.forward_kl, stats.reverse_kl]
    tops = []
    for model in (own, theirs):
        measures.append(
            teacher_sampled(model.hidden_NH, model.head, micro.targets_N, temperature, budget_bytes).logp_N.exp()
        )
        top = teacher_topk(model.hidden_NH, model.head, min(_TOP, own_head.vocab_size), temperature, budget_bytes)
        tops.append(_pairs(top.token_ids_NK, top.logp_NK.exp()))
    table = torch.stack([measure.double() for measure in measures], dim=1)
    if table.isnan().any():
        raise ValueError("a mark is not a number; student or teacher gives NaN logits on these sequences")
    for numbers, own_top, their_top in zip(table.tolist(), *tops, strict=True):
        value, forward_kl, reverse_kl, own_p, their_p = map(_short, numbers)
        yield _Line(value, forward_kl, reverse_kl, own_p, their_p, own_top, their_top)


def _pairs(ids_NK: Tensor, p_NK: Tensor) -> list[list[tuple[int, float]]]:
    """Token ids with their probabilities, position by position."""
    return [list(zip(ids, map(_short, p), strict=True)) for ids, p in zip(ids_NK.tolist(), p_NK.tolist(), strict=True)]


def _short(value: float) -> float:
    """Six digits: float32 carries seven, and a file of marks is mostly digits."""
    return float(f"{value:.6g}")


def _token_marks(
    rollout: Rollout, model: LanguageModel, lines: Iterator[_Line], token_text: TokenText, forced: frozenset[int]
) -> Iterator[TokenMark]:
    before = model.decoder_start_ids[-1] if model.is_encoder_decoder else rollout.prompt_ids[-1]
    for position, token in enumerate(rollout.completion_ids):
        line = next(lines)
        student, teacher = (
            tuple(Choice(token_text(before, choice), p, choice) for choice, p in top)
            for top in (line.student, line.teacher)
        )
        yield TokenMark(
            token_text(before, token), *line[:5], student=student, teacher=teacher, id=token, forced=position in forced
        )
        before = token


def _token_texts(tokenizer: Any) -> TokenText:
    """(token before, token) -> the token's text there: many tokenizers drop the leading space of a token decoded alone."""

    @cache
    def decode(*ids: int) -> str:
        return str(tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False))

    def text(before: int, token: int) -> str:
        together, alone, own = decode(before, token), decode(before), decode(token)
        # Bytes of one character decode together to the character, or, while it is incomplete, to a single U+FFFD.
        bytes_of_one = alone.endswith("\ufffd") and own.startswith("\ufffd")
        return together[len(alone) :] if together.startswith(alone) and not bytes_of_one else own

    return text


def save(sequences: Sequence[MarkedSequence], run: Path, step: int) -> Path:
    """Writes marks/step-XXXXXXXX.jsonl in the run's folder, one sequence a line; infinity as the string "Infinity"."""
    path = run / FOLDER / f"step-{step:08d}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"".join(to_json(sequence, inf_nan_mode="strings") + b"\n" for sequence in sequences))
    return path


def read(path: Path) -> list[MarkedSequence]:
    """What `save` wrote.

    Raises:
        UserError: a line is damaged (names file and line).
    """
    adapter = TypeAdapter(MarkedSequence)
    sequences = []
    for number, line in enumerate(path.read_bytes().splitlines(), 1):
        try:
            sequences.append(adapter.validate_json(line))
        except ValidationError as error:
            problem = error.errors()[0]
            where = ".".join(map(str, problem["loc"])) or "the line"
            raise UserError(f"{path}, line {number}: {where}: {problem['msg']}; delete the file to go on") from error
    return sequences


def read_all(run: Path) -> dict[int, list[MarkedSequence]]:
    """The marks in a run's folder by step, steps ascending; empty where none were saved."""
    found = {path: _FILE.fullmatch(path.name) for path in sorted((run / FOLDER).glob("*.jsonl"))}
    return {int(match[1]): read(path) for path, match in found.items() if match is not None}


def mean_divergence(sequence: MarkedSequence) -> float:
    """The run's divergence, mean over the tokens the writer chose, in nats."""
    chosen = [token.divergence for token in sequence.tokens if not token.forced]
    return math.fsum(chosen) / len(chosen)
