"""A judge for each claim of the paper: stored tables in, a verdict out. None where the tables it needs are not there.

The criteria are in the code and on the page, not in anybody's eye. They were set before the experiments ran, but for these: claim 1 chooses
among divergences in each decoding (once for all at first; since then a search on Multi30k's validation split had shown another divergence
ahead in each); claim 3's second half asks for a sure lead, claim 5's asks that fraction 1 be not surely below another, and claim 6 has a
second half, takes its alpha from validation and asks, since after the runs, that this alpha be not surely behind GKD alone greedily: all
stricter than before, as is that the repetition of runs, where it came out otherwise, has to hold too. Claim 7 reads the gain of a student
that starts as its teacher, over seeds and examples, where it had read seeds alone. `control` repeats `methods` and counts for nothing.
`self_large`, which decides claim 7, was set up after `self` and its repetition had left the lead at T = 1 open.
Comparisons were added after others had come out against the claim, which stay and are judged: `multi30k`, with few outputs, after
`multi30k_all`; `multi30k_long`, twice as many steps, after `multi30k`; `multi30k_low_data` after `low_data`; `multi30k_diversity` after
`diversity`; `fractions_few` after `fractions`; and `rl` after five settings had not met claim 6, of which `rl_hard` is judged
(`rl_weak_start` is told of, the others are trials without tables). `rl_one_rate` is not counted: two of its alphas are runs of `rl`.
"""

from __future__ import annotations

from collections.abc import Mapping

from comparisons import compared, on_policy, on_policy_wins
from cost import cost
from layout import Verdict, metric_panel, values_table
from reward import reward_and_quality
from samples import ONE_RATE, quality_and_diversity
from tables import (
    DECODINGS,
    GREEDY,
    Estimated,
    Incomplete,
    Part,
    over_seeds,
    positive,
    shown,
    shown_lead,
    slope,
)

PAIRED = "paired seeds, or Welch's interval where the runs are of two machines"
REPEATED = "Where runs were repeated and came out otherwise, the repetition has to hold too."
ITSELF = "the teacher itself"  # how the names of students begin that start as their teacher
SELF_LARGE = "self_large"
SELF_LARGE_IS = "4,000 other problems, six seeds"
LARGE_DECIDES = (
    "Decided by 4,000 problems of another seed and six runs, set up before they ran, because 1,000 problems and three runs had left the "
    "lead at T = 1 open: above 0 at first, no longer surely when repeated."
)
SHARP = "teacher at temperature "  # and that of a sharpened one ends with its temperature
LOW_DATA = {  # task, on-policy GKD with 5% of the inputs, fixed outputs to all of them
    "low_data": (
        "arithmetic",
        "on-policy GKD, 500 problems",
        ("supervised KD, 10,000 answers", "ImitKD, 10,000 answers"),
    ),
    "multi30k_low_data": (
        "Multi30k",
        "on-policy GKD, 1,450 sentences",
        ("supervised KD, 29,000 translations", "ImitKD, 29,000 translations"),
    ),
}


def low_data(parts: Mapping[str, Part]) -> Verdict | None:
    """Claim 2."""
    there = {name: about for name, about in LOW_DATA.items() if parts[name].is_there}
    if not there:
        return None
    checks, found, header, rows, panels = [], [], [""], [], []
    for name, (task, ours, fixed) in there.items():
        part = parts[name]
        best = {d: _best(part, [m for m in fixed if m in part.methods] or list(fixed), d) for d in DECODINGS}
        ahead = {d: part.lead(ours, best[d], d) for d in DECODINGS}
        checks += [part.surely_ahead(ours, best[d], d) for d in DECODINGS]
        found += [
            f"{task}, {d}: {shown_lead(*ahead[d])} {best[d]}{_again(part, part.repeated_lead(ours, best[d], d))}."
            for d in DECODINGS
        ]
        header, values = values_table(part, part.methods)
        rows += [[f"{task}: {row[0]}", *row[1:]] for row in values]
        panels.append(metric_panel(part, task))
    return Verdict(
        2,
        "With 5% of the inputs and no reference, on-policy GKD beats fixed outputs to all inputs",
        "so on XSum, against supervised KD and ImitKD",
        checks,
        "Per task and decoding: the metric minus that of the better of the two lies above 0 with its 95% interval "
        f"({PAIRED}). {REPEATED} "
        "(Multi30k, whose student was fine-tuned on all pairs, was added after arithmetic had not met it.)",
        (["on the test split [over seeds]", *header[1:]], rows),
        "\n".join(found),
        tuple(there),
        tuple(panels),
    )


def divergence_depends(parts: Mapping[str, Part]) -> Verdict | None:
    """Claim 3."""
    part = parts["divergences"]
    if not part.is_there:
        return None
    part.line("on-policy GKD forward_kl", GREEDY)  # without it another one would be best by default
    best = {d: _best(part, part.methods, d) for d in DECODINGS}
    apart = {d: _behind(part, best[d], part.methods, d) for d in DECODINGS}
    again = best[GREEDY] if part.repeated is None else _best(part.repeated, part.repeated.methods, GREEDY)
    differs, others = [], []
    for name, (task, _) in compared(parts).items():
        own = on_policy(parts[name])
        if name not in ("methods", "control") and len(own) > 1:  # another task
            other = _best(parts[name], own, GREEDY)
            behind = _behind(parts[name], other, own, GREEDY)
            differs.append(other != best[GREEDY] and best[GREEDY] in behind)
            others.append(f"{task}, greedy: best {other}, surely ahead of {', '.join(behind) or 'none'}.")
    return Verdict(
        3,
        "The best divergence depends on the task",
        "XSum JSD(0.9), WMT14 JSD(0.1), GSM8K forward KL, instruction tuning reverse KL",
        [bool(apart[GREEDY]) and all(name.endswith("forward_kl") for name in (best[GREEDY], again)), any(differs)],
        "On arithmetic, the task nearest to GSM8K, forward KL is best greedily, and surely ahead of at least one other; and on another "
        "task where several divergences were compared, another one is best and surely ahead of this task's. Surely: a 95% interval above 0 "
        f"({PAIRED}), one for each pair, not corrected for their number. {REPEATED}",
        values_table(part, part.methods),
        "\n".join(
            [
                *(
                    f"arithmetic, {d}: best {best[d]}, surely ahead of {', '.join(apart[d]) or 'none'}."
                    for d in DECODINGS
                ),
                *_best_in_the_repetition(part),
                *(others or ["No other task was compared under several divergences."]),
                ONE_RATE,
            ]
        ),
        ("divergences",),
        (metric_panel(part),),
    )


def _best(part: Part, methods: list[str], decoding: str) -> str:
    return max(methods, key=lambda m: part.line(m, decoding).value[0])


def _behind(part: Part, best: str, methods: list[str], decoding: str) -> list[str]:
    """The methods that `best` is surely ahead of."""
    return [m for m in methods if m != best and part.surely_ahead(best, m, decoding)]


def _best_in_the_repetition(part: Part) -> list[str]:
    """Which divergence is best where runs were repeated; nothing where none came out otherwise."""
    more = part.repeated
    if more is None:
        return []
    best = {d: _best(more, more.methods, d) for d in DECODINGS}
    return [
        f"arithmetic, {d}, among the runs of {more.name} alone, which repeats some of these: best {best[d]}, surely ahead of "
        f"{', '.join(_behind(more, best[d], more.methods, d)) or 'none'}."
        for d in DECODINGS
    ]


def _again(part: Part, lead: Estimated | None) -> str:
    """What a lead came to in the repetition; "" without one."""
    return "" if part.repeated is None or lead is None else f"; repeated ({part.repeated.name}), {shown_lead(*lead)} it"


def more_student_data(parts: Mapping[str, Part]) -> Verdict | None:
    """Claim 5."""
    tables = {"fractions_few": "answers to 1,000 of 10,000 problems", "fractions": "answers to all 10,000 problems"}
    there = {name: about for name, about in tables.items() if parts[name].is_there}
    if not there:
        return None
    header, rows, checks, found, panels = [""], [], [], [], []
    for name, about in there.items():
        part = parts[name]
        by_fraction = {float(m.removeprefix("fraction ")): m for m in part.methods}
        if not {0.0, 1.0} <= by_fraction.keys():
            raise Incomplete(f"part {name}: no finished run of fraction 0 or 1")
        slopes = {d: slope({x: part.per_seed(m, part.metric, d) for x, m in by_fraction.items()}) for d in DECODINGS}
        ahead = {d: _surely_ahead(part, by_fraction[1.0], d) for d in DECODINGS}
        checks += [positive(ends) for _, ends in slopes.values()] + [not ahead[d] for d in DECODINGS]
        found += [
            f"{about}, {d}: {shown(*slopes[d])} points from fraction 0 to 1 by the slope; surely ahead of fraction 1: "
            f"{', '.join(ahead[d]) or 'none'}."
            for d in DECODINGS
        ]
        header, values = values_table(part, part.methods)
        rows += [[f"{about}: {row[0]}", *row[1:]] for row in values]
        panels.append(metric_panel(part, about, {m: x for x, m in by_fraction.items()}, "student data fraction"))
    found += [f"{about}: no table yet." for name, about in tables.items() if name not in there]
    return Verdict(
        5,
        "More student data is better",
        "accuracy on GSM8K rises with the student data fraction, from about 25% on",
        checks,
        "Per decoding, with few answers for the fixed part and with answers to everything: the least-squares slope of accuracy over the "
        "fraction is positive with its 95% interval over seeds; and fraction 1 is not surely below any other (95% interval of the "
        "difference over paired seeds below 0, not corrected for their number): a slope does not see that accuracy falls again. (Few "
        "answers were added after answers to everything had not met it; the second half was added after the runs.)",
        (header, rows),
        "\n".join([*found, "One learning rate serves all fractions."]),
        tuple(there),
        tuple(panels),
    )


def _surely_ahead(part: Part, method: str, decoding: str) -> list[str]:
    """With each one's lead, the methods that are surely ahead of this one."""
    leads = {m: part.lead(m, method, decoding) for m in part.methods if m != method}
    return [f"{m} by {shown(*lead)}" for m, lead in leads.items() if positive(lead[1])]


def self_distillation(parts: Mapping[str, Part]) -> Verdict | None:
    """Claim 7, decided by the larger repetition where that is there."""
    there = {name: parts[name] for name in (SELF_LARGE, "self") if parts[name].is_there}
    if not there:
        return None
    found, rows, panels, header, checks = [], [], [], [], []
    for name, part in there.items():
        begin = f"{SELF_LARGE_IS}: " if name == SELF_LARGE else ""
        end = " (before, not counted)" if name == "self" and SELF_LARGE in there else ""
        on_policy_methods = [m for m in part.methods if "on-policy" in m]
        ahead = {(m, d): _over_its_teacher(part, m, d) for m in on_policy_methods for d in DECODINGS}
        repeated = {(m, d): _over_its_teacher_repeated(part, m, d) for m, d in ahead}
        sure = {of: positive(ahead[of][1]) and (lead is None or positive(lead[1])) for of, lead in repeated.items()}
        checks = checks or [any(sure[m, d] for m in on_policy_methods) for d in DECODINGS]
        found += [
            f"{begin}{m}, {d}: {shown_lead(*lead)} its teacher{_again(part, repeated[m, d])}{end}."
            for (m, d), lead in ahead.items()
        ]
        found += [f"{begin}{_sharpened(m, ahead[m, GREEDY])}" for m in on_policy_methods if SHARP in m]
        header, values = values_table(part, part.methods)
        rows += [[f"{begin}{cells[0]}", *cells[1:]] for cells in values]
        panels.append(metric_panel(part, SELF_LARGE_IS if begin else ""))
    return Verdict(
        7,
        "A student of its teacher's size passes its teacher",
        "self-distillation on GSM8K: the on-policy student beats its teacher",
        checks,
        "Per decoding: accuracy of an on-policy student minus its teacher's has a 95% interval above 0: over seeds and examples where the "
        "student starts as the teacher itself, whose gain this is; else over seeds. (One student of several is enough.) "
        + (LARGE_DECIDES if SELF_LARGE in there else REPEATED),
        (header, rows),
        "\n".join(found),
        tuple(there),
        tuple(panels),
    )


def _over_its_teacher(part: Part, method: str, decoding: str) -> Estimated:
    """Accuracy of a student minus its teacher's."""
    if method.startswith(ITSELF):
        return part.gain(method, decoding)
    teacher = part.reference("teacher", decoding)
    if teacher is None:
        raise Incomplete("part self: the teacher was not tested")
    return over_seeds({seed: value - teacher for seed, value in part.per_seed(method, part.metric, decoding).items()})


def _over_its_teacher_repeated(part: Part, method: str, decoding: str) -> Estimated | None:
    """The same in the repetition; None where the method was not repeated."""
    more = part.repeated
    if more is None or method not in more.methods or part.is_added(method):
        return None
    return _over_its_teacher(more, method, decoding)


def _sharpened(method: str, greedily: Estimated) -> str:
    """What to know of a lead at T = 1 that a sharper teacher has taught."""
    return (
        f"{method}: at T = 1 a student that was taught a distribution sharpened to temperature {method.rpartition(SHARP)[2]} is compared "
        "with its teacher sampled at T = 1; part of the lead there is that sharpening. Greedily, which no sharpening helps, it is "
        f"{shown_lead(*greedily)} its teacher."
    )


JUDGES = (
    on_policy_wins, low_data, divergence_depends, quality_and_diversity,
    more_student_data, reward_and_quality, self_distillation, cost,
)  # fmt: skip
