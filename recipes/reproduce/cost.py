"""The judge of claim 8, seconds a step: see claims.py."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import fmean

from comparisons import compared, counted
from layout import Panel, Verdict
from tables import (
    Estimated,
    Part,
    over_seeds,
    shown,
)

MOST = 2.2  # the upper end of what was published
LEAST = 1.8
BASE = "supervised KD"
BUSY = "multi30k_low_data"  # its stored runs had other work beside them, but for those
IDLE = "multi30k_all"  # that it shares with this part


def cost(parts: Mapping[str, Part]) -> Verdict | None:
    """Claim 8."""
    there = {name: task for name, (task, _) in compared(parts).items()}
    if not there:
        return None
    rows, panels = [], []
    ratios: dict[str, Estimated] = {}
    repeated: dict[str, Estimated] = {}
    for name, task in there.items():
        part = parts[name]
        seconds_of = {m: over_seeds(part.seconds_a_step(m)) for m in part.methods}
        panels.append(Panel(task, "", "seconds a step", {"all runs": seconds_of}))
        for method in part.methods:
            ratio = _ratio(part, method, BASE)
            times = "1" if method == BASE else shown(*ratio, digits=2)
            rows.append([f"{task}: {method}", shown(*seconds_of[method], digits=3), times])
            if method.startswith("on-policy"):
                (ratios if name in counted(there) else repeated)[f"{task}, {method}"] = ratio
    below = sum(ratio < LEAST for ratio, _ in ratios.values())
    return Verdict(
        8,
        "Sampling on-policy costs at most about twice a step on fixed data",
        f"{LEAST} to {MOST} times",
        [ends is not None and ends.high <= MOST for _, ends in ratios.values()],
        f"A step of on-policy GKD takes at most {MOST} times one of supervised KD, with all of the ratio's 95% interval over seeds "
        "(Student's t on the ratios of each seed; runs shared the machine). That is the upper end of what was published; a lower end is "
        "not asked for. (The comparison with a control repeats the one before it and does not count.)",
        (["", "seconds a step [over seeds]", "/ supervised KD [over seeds]"], rows),
        "\n".join(
            [
                f"{below} of {len(ratios)} ratios that count lie below the published {LEAST} to {MOST}{_range(ratios)}.",
                *(f"{name}: {_times(ratio)}." for name, ratio in ratios.items()),
                *(f"{name}: {_times(ratio)} (a repetition; not counted)." for name, ratio in repeated.items()),
                *_beside_other_work(parts[BUSY], parts[IDLE]),
            ]
        ),
        tuple(there),
        tuple(panels),
    )


def _ratio(part: Part, method: str, base: str) -> Estimated:
    """Seconds a step of one method over those of another: mean of the ratios of the seeds that both have.

    Without a common seed the ratio of the means, with no interval.
    """
    seconds, below = part.seconds_a_step(method), part.seconds_a_step(base)
    pairs = {seed: seconds[seed] / below[seed] for seed in seconds if seed in below}
    return over_seeds(pairs) if pairs else (fmean(seconds.values()) / fmean(below.values()), None)


def _times(ratio: Estimated) -> str:
    return f"{shown(*ratio, digits=2)} times{'' if ratio[1] else ' (no interval: no two seeds in common)'}"


def _range(ratios: Mapping[str, Estimated]) -> str:
    """That sampling costs less here than published, and how little, where all ratios say so."""
    times = [ratio for ratio, _ in ratios.values()]
    if not times or max(times) >= LEAST:
        return ""
    return f": here it costs less than published, {min(times):.2f} to {max(times):.2f} times"


def _beside_other_work(part: Part, idle: Part) -> list[str]:
    """The part that is left out of the verdict; nothing where it is not there.

    Its ratio has no interval: pairs of a seed in which only one of the two runs was slowed are none.
    """
    if not part.is_there:
        return []
    base, ours = (next((m for m in part.methods if m.startswith(name)), None) for name in (BASE, "on-policy"))
    if base is None or ours is None:
        return []
    seconds = part.seconds_a_step(base)
    ratio = fmean(part.seconds_a_step(ours).values()) / fmean(seconds.values())
    shares = idle.is_there and BASE in idle.methods and idle.seconds_a_step(BASE) == seconds
    why = (
        f"only its own runs had other work beside them (docs/LOG.md), those of {BASE} are {idle.name}'s"
        if shares
        else "its stored runs had other work beside them (docs/LOG.md)"
    )
    return [f"{part.name}, {ours}: {ratio:.2f} times; not counted and without an interval: {why}."]
