from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from tests.compare.conftest import held_out_record, run_record
from tutelage.compare import summary
from tutelage.compare.intervals import Estimate
from tutelage.compare.plan import Choice, Variant
from tutelage.compare.records import EvaluationProtocol, EvaluationRecord, RunRecord
from tutelage.compare.summary import FinalRun, Method, Reference
from tutelage.eval.statistics import Interval

PROTOCOL = EvaluationProtocol(limit=None, temperatures=(0.0,), num_beams=1, resamples=400)
INITIAL = Reference("initial student", "tiny", held_out_record(10.0, PROTOCOL))


def method(
    name: str, runs: Sequence[RunRecord], initial: Reference | None = INITIAL, examples: str = "these", **choice: object
) -> Method:
    finals = [FinalRun(name, str(i), run, held_out_record(run.curve[-1].scores[0].value, PROTOCOL, examples), initial)
              for i, run in enumerate(runs)]  # fmt: skip
    chosen = {"point": {}, "score": None, "edges": (), "tried": (), **choice}
    return Method(Variant(name, name, {}, {}, ({},), (0,)), Choice(name, **chosen), tuple(finals))  # type: ignore[arg-type]


def test_equal_steps_by_hand() -> None:
    kd = method("kd", [run_record([10, 15, 20]), run_record([10, 16, 24])])
    gkd = method("gkd", [run_record([10, 20, 30], step_seconds=3.0), run_record([10, 20, 38], step_seconds=5.0)])
    first, second = summary.equal_steps([kd, gkd], "kd")
    assert (first.method, first.metric, first.decoding, first.runs, first.steps) == ("kd", "accuracy", "greedy", 2, 4)
    assert (second.over_seeds.mean, second.tokens, second.seconds) == (34.0, 40.0, 16.0)
    interval = second.over_seeds.interval
    assert interval is not None
    assert interval.high == pytest.approx(34 + 12.7062 * 4, abs=1e-3)  # Student's t with one degree of freedom
    assert first.ratio is None
    assert second.gain is not None
    assert second.ratio is not None
    assert second.gain.value == 24.0
    assert second.gain.interval is not None
    ends = (second.gain.interval.low, second.gain.interval.high)
    assert ends == pytest.approx((24 - 12.7062 * 4, 24 + 12.7062 * 4), rel=1e-3)
    # kd's gain of 12 varies by 12.7 * 2: it cannot be told from zero, and the ratio has no bounds.
    assert (second.ratio.value, second.ratio.interval) == (2.0, None)


def test_gains_of_fresh_weights_are_over_each_seeds_own() -> None:
    starts = [
        Reference(f"seed {seed}", "tiny", held_out_record(value, PROTOCOL)) for seed, value in enumerate((4.0, 8.0))
    ]

    def started(name: str, ends: Sequence[float]) -> Method:
        whole = method(name, [run_record([0, 0, end]) for end in ends])
        runs = [replace(run, initial=start) for run, start in zip(whole.runs, starts, strict=True)]
        return replace(whole, runs=tuple(runs))

    kd, gkd = started("kd", (14.0, 18.0)), started("gkd", (24.0, 30.0))
    first, second = summary.equal_steps([kd, gkd], "kd")
    assert first.over_seeds.mean == 16.0
    assert first.gain == Estimate(10.0, Interval(10.0, 10.0))  # the luck of the weights is no luck of the training
    assert second.gain is not None
    assert second.ratio is not None
    assert (second.gain.value, second.ratio.value) == (21.0, 2.1)
    assert second.gain.interval is not None
    assert second.gain.interval.high == pytest.approx(21 + 12.7062 * 1, rel=0.1)  # the gains are 20 and 22
    assert not [note for note in summary.notes([kd, gkd], [first, second], [], "kd") if "no gain" in note]


def test_gains_need_the_same_examples_and_the_same_student() -> None:
    kd = method("kd", [run_record([10, 15, 20])])
    elsewhere = method("elsewhere", [run_record([10, 15, 20])], examples="others")
    untested = method("untested", [run_record([10, 15, 20])], initial=None)
    other = method("larger", [run_record([10, 15, 20])], Reference("larger", "large", held_out_record(15.0, PROTOCOL)))
    lines = {line.method: line for line in summary.equal_steps([kd, elsewhere, untested, other], "kd")}
    assert lines["elsewhere"].gain is None
    assert lines["untested"].gain is None
    assert lines["larger"].gain is not None
    assert lines["larger"].gain.value == 5.0
    assert lines["larger"].ratio is None
    notes = summary.notes([kd, elsewhere, untested, other], list(lines.values()), [], "kd")
    assert [note.split()[0] for note in notes if "has no gain" in note] == ["elsewhere", "untested"]


def by_rouge(record: EvaluationRecord) -> EvaluationRecord:
    return record.model_copy(update={"scores": tuple(s.model_copy(update={"metric": "rougeL"}) for s in record.scores)})


def test_gains_and_ratios_need_the_same_metric() -> None:
    kd = method("kd", [run_record([10, 15, 20])])
    whole = method("rouge", [run_record([10, 15, 20])])
    runs = tuple(replace(run, test=by_rouge(run.test)) for run in whole.runs)
    mixed = replace(whole, runs=runs)
    first, second = summary.equal_steps([kd, mixed], "kd")
    assert (first.metric, second.metric) == ("accuracy", "rougeL")
    assert first.gain is not None
    assert second.gain is second.ratio is None
    (note,) = (note for note in summary.notes([kd, mixed], [first, second], [], "kd") if "no gain" in note)
    assert note == (
        "rouge has no gain at equal steps: its initial student was not tested, or not on the same examples by the same metric."
    )
    start = replace(INITIAL, test=by_rouge(INITIAL.test))
    own = replace(whole, runs=tuple(replace(run, initial=start) for run in runs))
    assert [(line.gain is None, line.ratio is None) for line in summary.equal_steps([kd, own], "kd")] == [
        (False, True)
    ] * 2


def test_equal_time_divides_gains_of_one_metric_only() -> None:
    kd = method("kd", [run_record([10, 15, 20])])
    record = run_record([10, 20, 30])
    curve = tuple(
        point.model_copy(update={"scores": tuple(s.model_copy(update={"metric": "rougeL"}) for s in point.scores)})
        for point in record.curve
    )
    rouge = method("rouge", [record.model_copy(update={"curve": curve})])
    lines = summary.equal_time([kd, method("same", [record]), rouge], "kd")
    assert [line.ratio for line in lines] == [None, Estimate(2.0, None), None]


def test_equal_time_is_the_quickest_methods_seconds() -> None:
    # kd trains for 8 s on average (6 and 10), gkd for 24 (evaluated after 0, 6, 12, 18, 24 seconds).
    kd = method("kd", [run_record([10, 15, 20], step_seconds=1.5), run_record([10, 17, 24], step_seconds=2.5)])
    gkd = method("gkd", [run_record([10, 30, 40, 50, 60], step_seconds=3.0)])
    assert summary.time_budget([kd, gkd]) == 8.0
    stands = [summary.reached(gkd, seconds)[0] for seconds in (0.0, 3.0, 6.0, 17.0, 24.0, 99.0)]
    assert [point.scores[0].value for point in stands] == pytest.approx([10, 20, 30, 50 - 10 / 6, 60, 60])
    assert [point.seconds for point in stands] == pytest.approx([0, 3, 6, 17, 24, 24])
    first, second = summary.equal_time([kd, gkd], "kd")
    assert (first.steps, first.seconds, first.over_seeds.mean) == (4, 8.0, 22.0)
    # A third of the way from step 2, after 6 seconds, to step 4, after 12.
    assert (second.steps, second.tokens) == (3, 27.0)
    assert (second.seconds, second.over_seeds.mean) == pytest.approx((8.0, 30 + 10 / 3))
    assert second.gain is not None
    assert second.ratio is not None
    assert second.gain.value == pytest.approx(20 + 10 / 3)
    assert second.ratio.value == pytest.approx((20 + 10 / 3) / 12)
    assert second.ratio.interval is None  # of one run


def test_a_note_on_ratios_of_single_seeds_at_equal_time_and_none_on_a_baseline_without_gain() -> None:
    single, several = [run_record([10, 15, 20])], [run_record([10, 15, 20]), run_record([10, 15, 20.5])]
    for runs, others in ((single, single), (single, several), (several, single)):
        methods = [method("kd", runs), method("gkd", others)]
        lines = summary.equal_time(methods, "kd")
        assert lines[1].ratio is not None
        assert lines[1].ratio.interval is None
        assert summary.notes(methods, [], lines, "kd") == [
            "A single seed says nothing about the luck of a training: its interval is over examples only; at equal time it has none, "
            "nor has a ratio with it on either side."
        ]
    methods = [method("kd", several), method("gkd", several)]
    lines = summary.equal_time(methods, "kd")
    assert lines[1].ratio is not None
    assert lines[1].ratio.interval is not None
    assert summary.notes(methods, [], lines, "kd") == []
    weak = [method("kd", [run_record([10, 15, 9]), run_record([10, 15, 14])]), method("gkd", several)]
    expected = ["A ratio without an interval: the baseline's own gain cannot be told from zero."]
    assert summary.notes(weak, [], summary.equal_time(weak, "kd"), "kd") == expected
    assert summary.notes(weak, summary.equal_steps(weak, "kd"), [], "kd") == expected


def test_curves_must_be_there_and_agree() -> None:
    full = method("kd", [run_record([10, 15, 20])])
    assert summary.has_curves([full])
    assert not summary.has_curves([full, method("none", [run_record([10, 20])])])
    assert not summary.has_curves([full, method("odd", [run_record([1, 2, 3]), run_record([1, 2, 3], every=4)])])


def test_notes_say_what_a_reader_must_know() -> None:
    at_edge = {
        "point": {"rate": 0.1},
        "edges": ("rate",),
        "tried": (({"rate": 0.1}, 5.0), ({"rate": 1}, 4.0), ({"rate": 9}, None)),
    }
    kd = method("kd", [run_record([10, 15, 20])], **at_edge)
    gkd = method("gkd", [run_record([10, 15, 20, 30]).model_copy(update={"threads": 4})])
    assert summary.notes([kd, gkd], [], [], "kd") == [
        "Warning: the choice lies at the end of the grid for kd (rate = 0.1): the best may lie beyond; widen the search.",
        "Warning: kd was not chosen at rate = 9: a run there failed.",
        "Warning: the methods do not train for the same number of steps.",
        "Warning: seconds and equal time are of runs with different numbers of threads (kd: 1; gkd: 4) and say nothing of the "
        "methods; make all runs with the same jobs on the same machine.",
        "A single seed says nothing about the luck of a training: its interval is over examples only.",
    ]


def test_one_remark_for_all_choices_at_the_end_of_a_grid() -> None:
    points = [{"rate": 0.1 * scale, "small": 0.01 * scale} for scale in (1, 2, 3)]

    def chose(name: str, number: int, grid: Sequence[dict[str, float]], edges: tuple[str, ...]) -> Method:
        tried = tuple((point, 1.0) for point in grid)
        return method(name, [run_record([10, 15, 20])] * 2, point=grid[number], edges=edges, tried=tried)

    inside = chose("inside", 1, points, ())
    seqkd, gkd = chose("SeqKD", 0, points, ("rate", "small")), chose("GKD", 2, points, ("small",))
    assert summary.notes([seqkd, inside, gkd], [], [], "kd") == [
        "Warning: the choice lies at the end of the grid for SeqKD (rate = 0.1, small = 0.01), GKD (small = 0.03): the best may lie "
        "beyond; widen the search.",
    ]
    first, second = (chose(name, number, points[:2], ("rate", "small")) for number, name in enumerate(("a", "b")))
    assert summary.notes([first, inside, second], [], [], "kd") == [
        "A grid of two values has no inside: the choice is the better of the two, and the best may lie beyond, for "
        "a (rate = 0.1, small = 0.01), b (rate = 0.2, small = 0.02).",
    ]
    assert [note.split()[0] for note in summary.notes([first, gkd], [], [], "kd")] == ["Warning:", "A"]


def test_the_initial_students_luck_with_the_examples_is_taken_off() -> None:
    noise = np.random.default_rng(0).normal(size=PROTOCOL.resamples)

    def lucky(value: float) -> EvaluationRecord:
        resampled = {"greedy": tuple((value + noise).tolist())}
        return held_out_record(value, PROTOCOL).model_copy(update={"replicates": resampled})

    whole = method("kd", [run_record([0, 0, 30])])
    run = replace(whole.runs[0], test=lucky(30.0), initial=Reference("initial student", "tiny", lucky(20.0)))
    (line,) = summary.equal_steps([replace(whole, runs=(run,))], "kd")
    assert line.gain is not None
    assert line.gain.interval is not None
    assert (line.gain.interval.low, line.gain.interval.high) == pytest.approx((10.0, 10.0))
