"""Sources and their mixture: who writes a sequence, in which order, and what a resumed run sees."""

import time
from collections import Counter

import pytest

from tests.conftest import build_model, build_prompts
from tutelage.data.prompts import Draw, PromptStream
from tutelage.errors import UserError
from tutelage.rollout.base import Sampling
from tutelage.rollout.log import RolloutLog
from tutelage.rollout.native import NativeEngine
from tutelage.sources import DatasetSource, EngineSource, FirstDraw, Mixture, Replay, replay_share
from tutelage.types import Prompt, Rollout

PROMPTS = build_prompts((2,) * 12)


class Scribe:
    """Writes the sample index, and remembers what it was asked."""

    def __init__(self, name):
        self.name = name
        self.calls = []

    def rollouts(self, draws):
        self.calls.append([(d.prompt.id, d.sample) for d in draws])
        return [
            Rollout(d.prompt.token_ids, (d.sample + 3, 2), None, "stop", 0, d.prompt.id, d.sample, self.name)
            for d in draws
        ]


def mixture(fraction=0.5, unit="sequence", *, seed=0, log=None, batch_size=4):
    stream = PromptStream(PROMPTS, seed)
    return Mixture(stream, batch_size, Scribe("student"), Scribe("dataset"), fraction, unit, seed, log)


@pytest.mark.parametrize("unit", ["step", "sequence"])
def test_fixed_sequences_may_have_a_set_of_their_own(unit):
    """The student's sequences are those of the common stream; fixed ones are of the first three prompts, in epochs of their own."""
    common, few = PromptStream(PROMPTS, 1), PromptStream(PROMPTS[:3], 1)
    source = Mixture(common, 4, Scribe("student"), Scribe("dataset"), 0.5, unit, 1, fixed_stream=few)
    seen = {"student": Counter(), "dataset": Counter()}
    for step in range(30):
        coins = source.coins(step)
        for i, rollout in enumerate(source.next(step)):
            expected = (common if coins[i] else few).batch(step, 4)[i]
            assert (rollout.prompt_id, rollout.sample, rollout.source) == (
                expected.prompt.id, expected.sample, "student" if coins[i] else "dataset",
            )  # fmt: skip
            seen[rollout.source][rollout.prompt_id] += 1
    assert set(seen["dataset"]) == {prompt.id for prompt in PROMPTS[:3]}
    assert set(seen["student"]) == {prompt.id for prompt in PROMPTS}


# --- single sources ---------------------------------------------------------------------------------------------------


def test_dataset_source_gives_the_reference():
    prompt = Prompt(4, (5, 6), (7, 8, 2))
    assert DatasetSource().rollouts([Draw(prompt, 3)]) == [
        Rollout((5, 6), (7, 8, 2), None, "data", -1, 4, 3, "dataset")
    ]


def test_dataset_source_without_a_reference():
    with pytest.raises(UserError, match=r"training example 4 has no completion.*student_data_fraction=1"):
        DatasetSource().rollouts([Draw(Prompt(4, (5, 6)), 0)])


def test_engine_source_passes_on_seed_samples_and_name():
    engine, sampling = NativeEngine(build_model("llama")), Sampling(5)
    draws = [Draw(prompt, i) for i, prompt in enumerate(PROMPTS[:3])]
    written = EngineSource(engine, sampling, 7, "teacher").rollouts(draws)
    assert written == engine.generate(PROMPTS[:3], sampling, samples=[0, 1, 2], seed=7, source="teacher")
    assert written[0].source == "teacher"


def test_first_draw_asks_once_per_prompt():
    teacher = Scribe("teacher")
    source = FirstDraw(teacher)
    first = source.rollouts([Draw(PROMPTS[i], 0) for i in (3, 1)])
    second = source.rollouts([Draw(PROMPTS[i], 1) for i in (1, 2, 3, 2)])
    assert teacher.calls == [[(3, 0), (1, 0)], [(2, 0)]]
    assert [r.prompt_id for r in second] == [1, 2, 3, 2]
    assert second[0] == first[1]
    assert second[2] == first[0]
    source.rollouts([Draw(PROMPTS[1], 2)])
    assert len(teacher.calls) == 2


def test_first_draw_remembers_what_the_log_holds(tmp_path):
    log = RolloutLog(tmp_path)
    log.append(0, Scribe("teacher").rollouts([Draw(PROMPTS[0], 0), Draw(PROMPTS[1], 0)]), 1.0)
    log.append(1, Scribe("student").rollouts([Draw(PROMPTS[2], 0)]), 1.0)
    teacher = Scribe("teacher")
    written = FirstDraw(teacher, RolloutLog(tmp_path)).rollouts([Draw(PROMPTS[i], 1) for i in range(3)])
    assert teacher.calls == [[(2, 0)]]  # the student's sequence is no answer of the teacher
    assert [(r.prompt_id, r.source) for r in written] == [(0, "teacher"), (1, "teacher"), (2, "teacher")]


# --- replay -----------------------------------------------------------------------------------------------------------


class Versioned:
    """A student whose sequences say at which step they were written: one more each time it is asked, or as set."""

    version = 0

    def rollouts(self, draws):
        return [
            Rollout(d.prompt.token_ids, (3, 2), None, "stop", self.version, d.prompt.id, d.sample, "student")
            for d in draws
        ]


def replayed(folder, steps, *, share=0.5, unit="step", capacity=8, fraction=1.0, seed=0):
    """The first `steps` steps of a run of four sequences each, from the log of `folder` where it holds them."""
    log, student = RolloutLog(folder), Versioned()
    source = Replay(student, log, capacity, lambda step: share, unit, seed)
    mixed = Mixture(PromptStream(PROMPTS, 0), 4, source, Scribe("dataset"), fraction, "sequence", 0, log)
    written = []
    for step in range(steps):
        student.version = step
        written.append(mixed.next(step))
    return written


def test_replay_of_nothing_is_the_student(tmp_path):
    steps = replayed(tmp_path, 6, share=0.0)
    assert [{r.policy_version for r in rollouts} for rollouts in steps] == [{step} for step in range(6)]


@pytest.mark.parametrize("fraction", [1.0, 0.6])
@pytest.mark.parametrize("unit", ["step", "sequence"])
def test_replay_draws_from_the_students_newest_sequences(unit, fraction, tmp_path):
    buffer, earlier, new = [], 0, 0
    for step, rollouts in enumerate(replayed(tmp_path, 40, unit=unit, fraction=fraction)):
        own = [r for r in rollouts if r.source == "student"]
        drawn = [r for r in own if r.policy_version < step]
        assert set(drawn) <= set(buffer)
        assert len(set(drawn)) == len(drawn)  # without replacement
        assert unit == "sequence" or len(drawn) in (0, len(own))
        earlier, new = earlier + len(drawn), new + len(own) - len(drawn)
        buffer = [*buffer, *(r for r in own if r.policy_version == step)][-8:]
    assert abs(earlier / (earlier + new) - 0.5) < 0.25


def test_replay_waits_until_there_is_enough(tmp_path):
    first, second, *_ = replayed(tmp_path, 5, share=1.0, capacity=4)
    assert {r.policy_version for r in first} == {0}
    assert sorted(second, key=first.index) == first


def test_replay_goes_on_with_the_same_buffer(tmp_path):
    for unit in ("step", "sequence"):
        whole = replayed(tmp_path / f"{unit}-whole", 12, unit=unit, fraction=0.7)
        for pause in (1, 5, 9):
            replayed(tmp_path / f"{unit}-{pause}", pause, unit=unit, fraction=0.7)
            assert replayed(tmp_path / f"{unit}-{pause}", 12, unit=unit, fraction=0.7) == whole
        assert replayed(tmp_path / f"{unit}-other", 12, unit=unit, fraction=0.7, seed=1) != whole


def test_replay_does_not_go_on_without_the_steps_it_draws_from(tmp_path):
    replayed(tmp_path, 6)
    path = tmp_path / "rollouts.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    assert len(lines) == 6

    def source(kept, capacity=8):
        path.write_bytes(b"".join(lines[step] for step in kept))
        log = RolloutLog(tmp_path)
        student = Replay(Versioned(), log, capacity, lambda step: 0.5, "step", 0) if capacity else Versioned()
        return Mixture(PromptStream(PROMPTS, 0), 4, student, Scribe("dataset"), 1.0, "step", 0, log)

    source((0, 1, 2, 3)).check_log(4)  # as many as the checkpoint knows, or more
    source((0, 1, 2, 3, 4, 5)).check_log(4)
    source(()).check_log(0)
    source((), capacity=0).check_log(4)  # without replay a step needs no earlier one
    for kept, missing in (((), 0), ((0, 1), 2), ((0, 2, 3), 1)):
        with pytest.raises(
            UserError, match=rf"rollouts\.jsonl lacks step {missing}, .* checkpoint after 4 steps, .*overwrite"
        ):
            source(kept).check_log(4)


def test_replay_shares():
    assert [replay_share(step, 4, "rising") for step in range(4)] == [0, 0.25, 0.5, 0.75]
    assert [replay_share(step, 4, "falling") for step in range(4)] == [1, 0.75, 0.5, 0.25]
    assert [replay_share(step, 4, "constant") for step in range(4)] == [0.5] * 4


# --- the mixture ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("unit", ["step", "sequence"])
@pytest.mark.parametrize("fraction", [0.0, 0.25, 0.5, 1.0])
def test_share_of_the_student(fraction, unit):
    coins = [coin for step in range(1000) for coin in mixture(fraction, unit).coins(step)]
    tossed = 1000 if unit == "step" else 4000
    allowed = 4 * (fraction * (1 - fraction) / tossed) ** 0.5
    assert abs(sum(coins) / 4000 - fraction) <= allowed


def test_one_coin_for_the_step_or_one_for_each_sequence():
    assert {len(set(mixture(unit="step").coins(step))) for step in range(50)} == {1}
    assert {len(set(mixture(unit="sequence").coins(step))) for step in range(50)} == {1, 2}


@pytest.mark.parametrize("unit", ["step", "sequence"])
def test_coins_depend_on_seed_and_step_alone(unit):
    tossed = [mixture(unit=unit).coins(step) for step in range(50)]
    again = mixture(unit=unit)
    for step in reversed(range(50)):  # another process, another order
        assert again.coins(step) == tossed[step]
    assert tossed != [mixture(unit=unit, seed=1).coins(step) for step in range(50)]


def test_coins_are_independent_of_the_sequences_random_numbers():
    """No prompt id and sample may share its random numbers with the coins of a step."""
    from tutelage import sources
    from tutelage.rollout.sampling import uniforms

    source = mixture(unit="sequence", batch_size=64)
    for step in (0, 1, 7):
        numbers = uniforms(0, sources._COIN, step, 64)
        agreement = sum((u < 0.5) == coin for u, coin in zip(numbers, source.coins(step), strict=True))
        assert 16 < agreement < 48


def test_rollouts_keep_the_order_of_the_stream():
    source = mixture()
    seen = Counter()
    for step in range(20):
        rollouts = source.next(step)
        draws = PromptStream(PROMPTS, 0).batch(step, 4)
        assert [(r.prompt_id, r.sample) for r in rollouts] == [(d.prompt.id, d.sample) for d in draws]
        assert [r.source == "student" for r in rollouts] == source.coins(step)
        seen.update(r.source for r in rollouts)
    assert min(seen.values()) > 20
    assert all(source.student.calls)  # nobody is asked for nothing
    assert all(source.fixed.calls)


@pytest.mark.parametrize(("fraction", "missing"), [(0.0, "student"), (1.0, "fixed")])
def test_a_source_that_is_never_used_may_be_missing(fraction, missing):
    source = mixture(fraction)
    setattr(source, missing, None)
    assert len(source.next(0)) == 4


def test_samples_of_a_prompt_stand_in_a_row_and_are_numbered_on():
    """Two epochs over the 12 prompts, four samples of two prompts a step: 48 different draws in each."""
    stream = PromptStream(PROMPTS, 0)
    source = Mixture(stream, 8, Scribe("student"), None, 1.0, "step", 0, samples_per_prompt=4)
    drawn = Counter()
    for step in range(12):
        draws = source.draws(step)
        prompts = [draw.prompt.id for draw in stream.batch(step, 2)]
        assert [draw.prompt.id for draw in draws] == [prompt for prompt in prompts for _ in range(4)]
        epoch = step // 6
        assert [draw.sample for draw in draws] == [4 * epoch + j for _ in range(2) for j in range(4)]
        assert [(r.prompt_id, r.sample) for r in source.next(step)] == [(d.prompt.id, d.sample) for d in draws]
        drawn.update((draw.prompt.id, draw.sample) for draw in draws)
    assert len(drawn) == 12 * 8
    assert set(drawn.values()) == {1}


def test_a_step_in_the_log_is_replayed(tmp_path):
    first = mixture(log=RolloutLog(tmp_path))
    written = [first.next(step) for step in range(3)]
    again = mixture(log=RolloutLog(tmp_path))
    assert [again.next(step) for step in range(3)] == written
    assert again.student.calls == again.fixed.calls == []
    fresh = again.next(3)
    assert again.student.calls or again.fixed.calls
    assert dict(RolloutLog(tmp_path)) == {0: written[0], 1: written[1], 2: written[2], 3: fresh}


def test_the_log_keeps_the_seconds_of_writing(tmp_path, monkeypatch):
    now = [100.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])

    class Slow(Scribe):
        def rollouts(self, draws):
            now[0] += 2.5 * len(draws)
            return super().rollouts(draws)

    def source():
        return Mixture(
            PromptStream(PROMPTS, 0), 4, Slow("student"), Slow("dataset"), 0.5, "sequence", 0, RolloutLog(tmp_path)
        )

    source().next(0)
    assert now == [110.0]
    again = source()
    again.next(0)
    again.next(1)
    assert [again.log.seconds(step) for step in (0, 1)] == [10.0, 10.0]
    assert [RolloutLog(tmp_path).seconds(step) for step in (0, 1)] == [10.0, 10.0]
