"""The judge of claim 6, RL + GKD: see claims.py."""

from __future__ import annotations

from collections.abc import Mapping

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

WEAK_START = "rl_weak_start"  # a part of an earlier recipe


def reward_and_quality(parts: Mapping[str, Part]) -> Verdict | None:
    """Claim 6."""
    part = parts["rl"]
    if not part.is_there:
        return None
    by_alpha = {float(m.split()[1]): m for m in part.methods}  # "alpha 0.25"
    if len(by_alpha) < 3 or not {0.0, 1.0} <= by_alpha.keys():
        raise Incomplete("part rl: no finished run at alpha 0, at alpha 1, or between")
    first, *inner, last = (by_alpha[alpha] for alpha in sorted(by_alpha))
    reward = {m: part.per_seed(m, part.metric, SAMPLED) for m in part.methods}
    distance = {m: part.per_seed(m, "reverse_kl", SAMPLED, "validation") for m in part.methods}
    rows = [
        [
            m,
            shown(*over_seeds(reward[m])),
            shown(*part.line(m, GREEDY).value),
            shown(*over_seeds(distance[m]), digits=3),
        ]
        for m in part.methods
    ]

    def beats(m: str) -> bool:
        richer, nearer = (
            [difference(found[m], found[end])[1] for end in (first, last)] for found in (reward, distance)
        )
        gains_reward = all(positive(ends) for ends in richer) and not positive(nearer[1])
        gains_distance = all(negative(ends) for ends in nearer) and not any(negative(ends) for ends in richer)
        return gains_reward or gains_distance

    best = max(inner, key=lambda m: over_seeds(reward[m])[0])
    winners = [m for m in inner if beats(m)]
    rises, trend = difference(reward[best], reward[last]), difference(reward[first], reward[last])
    before = [part.reference("initial student", d) for d in (SAMPLED, GREEDY)]
    if None not in before:
        rows.append(["student before", *(shown(value) for value in before if value is not None), "–"])
    return Verdict(
        6,
        "RL + GKD improves reward and quality together",
        "reward (entailment) rises as alpha falls, ROUGE-2 as it rises; both above the initial student",
        [bool(winners), positive(rises[1]), positive(trend[1])],
        "Some alpha between 0 and 1 surely (95% interval over paired seeds) has a higher reward than both ends and is not surely farther "
        "from the teacher than GKD alone, or it is surely nearer to the teacher than both and has not surely less reward than either; the "
        "best of them surely has a higher reward than GKD alone; and, as published, reward alone ends with more reward than GKD alone. In "
        "part: some of this. (The best alpha is chosen on the test split that it is judged on.)",
        (["", "reward = accuracy at T = 1, test", "accuracy, greedy, test", "reverse KL to the teacher, nats"], rows),
        f"{best} has the highest reward inside, {shown(*rises)} points over GKD alone, and gains {shown(*part.gain(best, GREEDY))} "
        f"points greedily over the student before it; the first criterion holds for {', '.join(winners) or 'no alpha'}. Reward alone ends "
        f"{shown_lead(*trend)} GKD alone.{_from_a_weak_start(parts)}",
        tuple(name for name in ("rl", WEAK_START) if parts[name].is_there),
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


def _from_a_weak_start(parts: Mapping[str, Part]) -> str:
    """What became of the first attempt at claim 6, whose student was right too seldom."""
    part = parts[WEAK_START]
    if not part.is_there:
        return ""
    gains = {m: part.gain(m, SAMPLED) for m in part.methods}
    worse = [m for m, (gain, _) in gains.items() if gain < 0]
    return (
        f" In the first attempt, from the carried student, {len(worse)} of {len(gains)} alphas ended below it at T = 1 "
        f"({', '.join(f'{m}: {shown(*gain)}' for m, gain in gains.items())})."
    )
