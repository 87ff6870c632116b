"""The judge of claim 6, RL + GKD: see claims.py."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean

from tables import (
    GREEDY,
    SAMPLED,
    Incomplete,
    Panel,
    Part,
    Verdict,
    difference,
    metric_panel,
    negative,
    over_seeds,
    positive,
    shown,
    shown_lead,
)

# The runs of "rl" at one rate. Parts of earlier recipes: harder problems under the whole distribution; a student that is right too seldom.
ONE_RATE, HARD, WEAK_START = "rl_one_rate", "rl_hard", "rl_weak_start"
PerSeed = Mapping[str, Mapping[int, float]]


def reward_and_quality(parts: Mapping[str, Part]) -> Verdict | None:
    """Claim 6."""
    part = parts["rl"]
    if not part.is_there:
        return None
    by_alpha = _by_alpha(part)
    first, *inner, last = by_alpha.values()
    reward, distance = _measured(part)
    rows = [
        [
            m,
            shown(*over_seeds(reward[m])),
            shown(*part.line(m, GREEDY).value),
            shown(*over_seeds(distance[m]), digits=3),
        ]
        for m in part.methods
    ]
    best = _best_on_validation(part, inner)
    winners = [m for m in inner if _beats(m, (first, last), reward, distance)]
    rises, trend = difference(reward[best], reward[last]), difference(reward[first], reward[last])
    before = [part.reference("initial student", d) for d in (SAMPLED, GREEDY)]
    if None not in before:
        rows.append(["student before", *(shown(value) for value in before if value is not None), "–"])
    return Verdict(
        6,
        "RL + GKD improves reward and quality together",
        "reward (entailment) rises as alpha falls, ROUGE-2 as it rises; both above the initial student",
        [best in winners, positive(rises[1]), positive(trend[1])],
        "Of the alphas between 0 and 1 the one with the highest reward on validation (T = 1, mean over seeds) is judged on test: it surely "
        "(95% interval over paired seeds) has a higher reward than both ends and is not surely farther from the teacher than GKD alone, "
        "or it is surely nearer to the teacher than both and has not surely less reward than either; it surely has a higher reward than "
        "GKD alone; and, as published, reward alone ends with more reward than GKD alone. In part: some of this. (The distance is "
        "measured on validation.)",
        (["", "reward = accuracy at T = 1, test", "accuracy, greedy, test", "reverse KL to the teacher, nats"], rows),
        "\n".join(
            [
                f"{best}, chosen on validation, has {shown(*rises)} points of reward over GKD alone, and gains "
                f"{shown(*part.gain(best, GREEDY))} points greedily over the student before it; of all alphas inside, chosen or not, the "
                f"first criterion holds for {', '.join(winners) or 'none'}. Reward alone ends {shown_lead(*trend)} GKD alone.",
                *_elsewhere(parts[ONE_RATE], "At one learning rate for every alpha"),
                *_elsewhere(
                    parts[HARD], "In the recipe before this one, on problems of medium difficulty at one rate"
                ),
                *_from_a_weak_start(parts[WEAK_START]),
            ]
        ),
        tuple(name for name in ("rl", ONE_RATE, HARD, WEAK_START) if parts[name].is_there),
        (
            metric_panel(part, "", {m: alpha for alpha, m in by_alpha.items()}, "alpha"),
            Panel(
                "",
                "alpha",
                "reverse KL to the teacher, nats",
                {"T=1": {alpha: over_seeds(distance[m]) for alpha, m in by_alpha.items()}},
            ),
        ),
    )


def _beats(method: str, ends: tuple[str, str], reward: PerSeed, distance: PerSeed) -> bool:
    """The first criterion: more reward than both ends or less distance, and surely not less of the other."""
    richer, nearer = ([difference(found[method], found[end])[1] for end in ends] for found in (reward, distance))
    gains_reward = all(positive(lead) for lead in richer) and not positive(nearer[1])
    gains_distance = all(negative(lead) for lead in nearer) and not any(negative(lead) for lead in richer)
    return gains_reward or gains_distance


def _by_alpha(part: Part) -> dict[float, str]:
    """Alpha -> method, from 0 to 1. Raises Incomplete without an end or anything between."""
    found = {float(m.split()[1]): m for m in part.methods}  # "alpha 0.25"
    if len(found) < 3 or not {0.0, 1.0} <= found.keys():
        raise Incomplete(f"part {part.name}: no finished run at alpha 0, at alpha 1, or between")
    return dict(sorted(found.items()))


def _best_on_validation(part: Part, inner: Sequence[str]) -> str:
    """The method with the highest reward on validation, mean over seeds."""
    return max(inner, key=lambda m: fmean(part.per_seed(m, part.metric, SAMPLED, "validation").values()))


def _measured(part: Part) -> tuple[PerSeed, PerSeed]:
    """Reward on test and distance from the teacher on validation, of every method."""
    reward = {m: part.per_seed(m, part.metric, SAMPLED) for m in part.methods}
    return reward, {m: part.per_seed(m, "reverse_kl", SAMPLED, "validation") for m in part.methods}


def _elsewhere(part: Part, opening: str) -> list[str]:
    """The same in a part that is not judged; nothing where its tables are not there."""
    if not part.is_there:
        return []
    try:
        first, *inner, last = _by_alpha(part).values()
    except Incomplete as lack:
        return [f"{opening} ({part.name}) not all is there: {lack}."]
    reward, distance = _measured(part)
    best = _best_on_validation(part, inner)
    ends = ", ".join(f"{m} with {shown(*part.line(m, SAMPLED).value)}" for m in (first, best, last))
    holds = "holds" if _beats(best, (first, last), reward, distance) else "does not hold"
    return [
        f"{opening} ({part.name}) the runs ended at T = 1: {ends}; {best}, the best inside on validation, is "
        f"{shown_lead(*part.lead(best, last, SAMPLED))} {last}, its distance from the teacher less that one's is "
        f"{shown(*difference(distance[best], distance[last]), digits=3)} nats, over paired seeds; the first criterion {holds} for it."
    ]


def _from_a_weak_start(part: Part) -> list[str]:
    """What became of the first attempt at claim 6, whose student was right too seldom; nothing where its tables are not there."""
    if not part.is_there:
        return []
    gains = {m: part.gain(m, SAMPLED) for m in part.methods}
    worse = [m for m, (gain, _) in gains.items() if gain < 0]
    return [
        f"In the first attempt ({part.name}), from the carried student, {len(worse)} of {len(gains)} alphas ended below it at T = 1 "
        f"({', '.join(f'{m}: {shown(*gain)}' for m, gain in gains.items())})."
    ]
