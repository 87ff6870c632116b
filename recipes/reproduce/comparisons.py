"""The judge of claim 1, on-policy against fixed data, and the comparisons in which methods meet: see claims.py."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from layout import Panel, Verdict
from tables import (
    DECODINGS,
    Estimated,
    Incomplete,
    Part,
    above,
    shown,
)

from tutelage.eval.statistics import Interval

TASKS = {  # with the factor that claim 1 asks of each
    "methods": ("arithmetic, few outputs", 1.5),
    # Apart, not joined with the above as parts named "_more" are: seconds of two days do not compare.
    "control": ("arithmetic, few outputs, with a control", 1.5),
    "multi30k": ("Multi30k, few outputs", 1.3),
    "multi30k_long": ("Multi30k, few outputs, 1,000 steps", 1.3),
    "multi30k_all": ("Multi30k, outputs to all prompts", 1.3),
}
REPEATS = {
    "control": "methods"
}  # the same methods, rates and seeds once more: shown, and judged only where the first is not there
FIXED = ("supervised KD", "SeqKD")
SHORTER, CONTROL = "methods-280-steps.json", "multi30k-rates.json"  # beside the folder of the tables
STUDIES = "smollm2-"  # parts of smollm2.py, named smollm2-TASK-LAYERS


def compared(parts: Mapping[str, Part]) -> dict[str, tuple[str, float]]:
    """The parts in which methods meet, with the task's name and the factor that claim 1 asks of it."""
    studies = {name: (_study(name), 1.5) for name in parts if name.startswith(STUDIES)}
    return {name: about for name, about in (TASKS | studies).items() if parts[name].is_there}


def counted(there: Mapping[str, object]) -> list[str]:
    """Those of the parts whose checks count: not what repeats another of them."""
    return [name for name in there if REPEATS.get(name) not in there]


def _study(name: str) -> str:
    """What the page calls a part of smollm2.py."""
    task, _, layers = name.removeprefix(STUDIES).rpartition("-")
    size = "small settings, " if task.endswith("-small") else ""
    return f"SmolLM2, {task.removesuffix('-small')}, {size}{layers} of 30 layers"


def on_policy_wins(parts: Mapping[str, Part]) -> Verdict | None:
    """Claim 1."""
    there = compared(parts)
    if not there:
        return None
    rows, wins, found, panels, lacks = [], [], [], [], []
    for name, (task, least) in there.items():
        try:
            won, words, part_rows, panel = _comparison(parts[name], task, least)
        except Incomplete as lack:  # the other comparisons can be judged
            lacks.append(lack)
            found.append(f"{task}: cannot be judged yet: {lack}")
            continue
        if name in counted(there):
            wins.append(won)
        else:
            words = [f"{word} (repeats {REPEATS[name]}; not counted)" for word in words]
        found += words
        rows += part_rows
        panels.append(panel)
    if not wins:
        raise Incomplete("; ".join(map(str, lacks)))
    found += _other_attempts(parts["methods"].folder.parent.parent)
    return Verdict(
        1,
        "On-policy beats fixed data",
        "gain over the initial student 2.1 (XSum), 1.7 (WMT14), 1.9 (GSM8K) times that of the baselines",
        wins,
        "For each comparison, in at least one decoding and at equal steps: the gain of on-policy GKD (of several divergences the one that "
        "is best on validation in that decoding) is positive, at least 1.5 times (Multi30k: 1.3 times) that of supervised KD and of SeqKD, "
        "and its 95% interval over seeds and examples lies above theirs. Few outputs: supervised KD and SeqKD have those that the student "
        "was fine-tuned on (arithmetic 1,000 problems, Multi30k 2,900 sentences), on-policy GKD ten times the prompts and no output. "
        "Outputs to all prompts: the student was fine-tuned on all pairs, and all methods have all sentences; SmolLM2: the student is "
        "layers of a teacher fine-tuned on some of the outputs, and all methods have all prompts. (Multi30k with few outputs "
        "was set up after outputs to all prompts had not met the criterion, 1,000 steps after 500 had not. The comparison with a control "
        "repeats the one before it and does not count.)",
        (["gain on the test split", *DECODINGS], rows),
        "\n".join(f"{line}." for line in found),
        tuple(there),
        tuple(panels),
    )


def _comparison(part: Part, task: str, least: float) -> tuple[bool, list[str], list[list[str]], Panel]:
    """Whether one comparison meets claim 1's criterion; that in words, the rows of its table, its panel."""
    chosen = {d: _best_on_validation(part, d) for d in DECODINGS}
    rows = []
    for method in part.methods:
        marks = {d: " (chosen)" if method == chosen[d] else "" for d in DECODINGS}
        rows.append([f"{task}: {method}", *(f"{shown(*part.gain(method, d))}{marks[d]}" for d in DECODINGS)])
    judged = {d: _wins(part, chosen[d], d, least) for d in DECODINGS}
    words = [f"{task}, {decoding}: {word}" for decoding, (_, word) in judged.items()]
    return any(won for won, _ in judged.values()), words, rows, _gains_panel(part, task)


def _gains_panel(part: Part, title: str) -> Panel:
    gains = {d: {m: part.gain(m, d) for m in part.methods} for d in DECODINGS}
    return Panel(title, "", f"gain in {part.metric}, test", gains)


def _wins(part: Part, ours: str, decoding: str, least: float) -> tuple[bool, str]:
    """Whether `ours` meets claim 1's criterion in a decoding; that in words, with what speaks against it."""
    gain, _ = part.gain(ours, decoding)
    others = [part.gain(m, decoding) for m in FIXED]
    won = _meets(part.gain(ours, decoding), others, least)
    ratios = [
        f"{gain / other:.2f} times what {m} does" for m, (other, _) in zip(FIXED, others, strict=True) if other > 0
    ]
    idle = [m for m, (other, _) in zip(FIXED, others, strict=True) if other <= 0]
    much = " and ".join(ratios) or shown(*part.gain(ours, decoding))
    beside = f" ({' and '.join(idle)} gain{'s' * (len(idle) == 1)} nothing)" if idle else ""
    words = [f"{ours} gains {much + beside if gain > 0 else 'nothing'}, {_word(won)}"]
    for control in part.methods:
        if control not in FIXED and not control.startswith("on-policy"):
            words.append(f"{control}, gains {shown(*part.gain(control, decoding))}")
    times = {m: part.gain_at_equal_time(m, decoding) for m in (ours, *FIXED)}
    if None not in times.values():
        shares = ", ".join(f"{m} {shown(time)}" for m, time in times.items() if time is not None)
        words.append(f"gains at equal time (validation): {shares}")
    return won, "; ".join(words)


def _meets(ours: Estimated, fixed: Sequence[Estimated], least: float) -> bool:
    """Claim 1's criterion for gains in one decoding."""
    gain, interval = ours
    # A factor says nothing of a loss: -4 is "at least" 1.5 times -5.
    return gain > 0 and all(gain >= least * other and above(interval, ends) for other, ends in fixed)


def _other_attempts(results: Path) -> list[str]:
    """What has files of its own beside the tables; nothing where they are not there.

    Args:
        results: the folder above that of the tables.
    """
    shorter, control = results / SHORTER, results / CONTROL
    return [
        *(_with_fewer_steps(json.loads(shorter.read_text(encoding="utf-8"))) if shorter.exists() else ()),
        *(_with_all_sentences(json.loads(control.read_text(encoding="utf-8"))) if control.exists() else ()),
    ]


def _with_fewer_steps(stored: Mapping[str, Any]) -> list[str]:
    """The attempt with 280 steps, one line for each decoding."""
    found = []
    for decoding in DECODINGS:
        gains = {m["method"]: _stored(m["gain"]) for m in stored["methods"] if m["decoding"] == decoding}
        fixed = [gains[m] for m in FIXED]
        won = any(_meets(gain, fixed, TASKS["methods"][1]) for m, gain in gains.items() if m.startswith("on-policy"))
        shares = ", ".join(f"{m} {shown(*gain)}" for m, gain in gains.items())
        found.append(
            f"An attempt with 280 steps in place of 350 ([file](../{SHORTER})), {decoding}: gains {shares}, {_word(won)} (not counted)"
        )
    return found


def _with_all_sentences(stored: Mapping[str, Any]) -> list[str]:
    """The control of Multi30k with few outputs, from the search of rates."""
    found = []
    for decoding in DECODINGS:
        for method, name in (("seqkd", "SeqKD"), ("gkd", "on-policy GKD")):
            runs = [
                run
                for run in stored["runs"]
                if (run["method"], run["sentences"], run["teacher_temperature"]) == (method, 29_000, 1.0)
            ]
            best = max(runs, key=lambda run: run["bleu, validation"][decoding][0])
            divergence = f" {best['divergence']}" if best["divergence"] else ""
            bleu = shown(*_stored(best["bleu, validation"][decoding]))
            found.append(f"{decoding}, {name}{divergence} {bleu}, the best of {len(runs)} runs")
    return [
        f"Multi30k, few outputs, a control of {stored['runs'][0]['steps']} steps with one seed ([file](../{CONTROL})), SeqKD on the "
        "teacher's translations of all 29,000 sentences, BLEU on 200 validation sentences [over sentences], on which the best rate and "
        f"divergence are chosen: {'; '.join(found)} (not counted)"
    ]


def _stored(ends: Sequence[float]) -> Estimated:
    value, low, high = ends
    return value, Interval(low, high)


def _best_on_validation(part: Part, decoding: str) -> str:
    """The on-policy method whose headline metric, mean over seeds, is highest on validation."""
    ours = on_policy(part)
    if not ours:
        raise Incomplete(f"part {part.name}: no finished run of on-policy GKD")
    return max(ours, key=lambda m: fmean(part.per_seed(m, part.metric, decoding, "validation").values()))


def on_policy(part: Part) -> list[str]:
    """The methods of on-policy GKD."""
    return [m for m in part.methods if m.startswith("on-policy")]


def _word(passed: bool) -> str:
    return "criterion met" if passed else "criterion not met"
