"""What the page has besides the claims: comparisons that no claim is judged by."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import figures
from layout import Panel, markdown, metric_panel, values_table
from tables import (
    DECODINGS,
    GREEDY,
    INITIAL,
    SAMPLED,
    Estimated,
    Incomplete,
    Part,
    above,
    negative,
    over_seeds,
    positive,
    shown,
    with_more,
)

SIZES_FIGURE, GAMED_FIGURE = "sizes.png", "rl_gamed.png"


def _by_size(part: Part, decoding: str) -> dict[str, dict[str, Estimated]]:
    """What a size of student was trained with -> size -> gain over the initial student of that size, of the part "sizes"."""
    found: dict[str, dict[str, Estimated]] = {}
    for method in part.methods:
        size, data = method.split(", ", 1)  # "0.4 M, supervised KD, 1,000 answers"
        found.setdefault(data, {})[size] = part.gain(method, decoding)
    return found


def sizes(part: Part, folder: Path) -> str:
    """When on-policy training pays, by size of student and number of worked answers; no verdict. Draws its figure."""
    rows, found, panels, header = [], [], [], []
    for decoding in DECODINGS:
        gains = _by_size(part, decoding)
        header = ["gain on the test split", *gains]
        panels.append(Panel(decoding, "", f"gain in {part.metric}, test", gains))
        ours = next((data for data in gains if data.startswith("on-policy")), None)
        if ours is None:
            raise Incomplete(f"part {part.name}: no finished run of on-policy GKD")
        for data in gains:
            if lacks := [f"{size}, {data}" for size in gains[ours] if size not in gains[data]]:
                raise Incomplete(f"part {part.name}: no finished run of {'; '.join(lacks)}")
        for size in gains[ours]:
            rows.append([f"{size} parameters, {decoding}", *(shown(*of_size[size]) for of_size in gains.values())])
            surely = [
                f"{word} {data}"
                for data in gains
                if data != ours
                for word, one, other in (("ahead of", ours, data), ("behind", data, ours))
                if above(gains[one][size][1], gains[other][size][1])
            ]
            found.append(
                f"{size}, {decoding}: on-policy GKD surely {' and '.join(surely) or 'neither ahead nor behind'}"
            )
    figures.draw(panels, folder / SIZES_FIGURE)
    return "\n\n".join(
        [
            f"![]({SIZES_FIGURE})",
            markdown(header, rows),
            "; ".join(found) + ". Surely: 95% intervals over seeds and examples apart. One rate for all, not searched. "
            "Tables: [sizes](sizes/results.md).",
        ]
    )


NOISY = {"MiniLLM", "sampled-token reverse KL"}
BUSY = "Other work ran beside some of these runs: their seconds cannot be compared"


def without_verdict(part: Part, remarks: list[str]) -> str:
    """The table of a part that no claim is judged by."""
    header, values = values_table(part, part.methods)
    seconds = {m: f"{part.line(m, DECODINGS[0]).seconds:.0f}" for m in part.methods}
    rows = [[*row, seconds.get(row[0], "–")] for row in values]
    links = ", ".join(f"[{path.name}]({path.name}/results.md)" for path in with_more(part.folder, "runs.csv"))
    about = " ".join(f"{remark}." for remark in [*remarks, f"Tables: {links}"])
    return f"{markdown([*header, 'seconds of training'], rows)}\n\n{about}"


def baselines(part: Part, folder: Path) -> str:
    """All methods that the paper compares, on arithmetic."""
    remarks = [
        "Outputs to 1,000 problems, own sequences to 10,000",
        "One rate for fixed, one for own and mixed sequences",
        BUSY,
    ]
    return without_verdict(part, remarks)


def later(part: Part, folder: Path) -> str:
    """The methods published after the paper."""
    remarks = []
    if "DistiLLM" in part.methods:
        remarks.append(
            "DistiLLM has what on-policy GKD does without: half its steps are on the references of the 10,000 problems"
        )
    if NOISY & set(part.methods):
        remarks.append(
            "MiniLLM and sampled-token reverse KL follow a gradient of few samples, from a student that is right 6 times in 100. From a "
            "better one, and with AdamW, sampled-token reverse KL gains: alpha 1 of claim 6"
            + (
                ". MiniLLM, without the language-modelling loss and the clipping of its paper, ruins this student with AdamW as with Muon"
                if "MiniLLM, AdamW" in part.methods
                else ""
            )
        )
    return without_verdict(part, [*remarks, "Rates: the best on validation of those tried"])


def teachers(part: Part, folder: Path) -> str:
    """One teacher, another, and both together."""
    return without_verdict(
        part,
        [
            "On-policy GKD under forward KL, on 10,000 problems without an answer",
            "Several teachers mark by the weighted geometric mean of their distributions",
            "The better teacher is the one that the package carries, the weaker one that of claim 7, which is of the student's size",
            "One rate for all",
            BUSY,
        ],
    )


def gamed(part: Part, folder: Path) -> str:
    """Reward, metric and distance from the teacher over alpha, where the reward does not say what is wanted. Draws its figure."""
    greedy, before = (part.reference(INITIAL, d) for d in DECODINGS)
    rewarded = part.reference(INITIAL, SAMPLED, "reward")
    if greedy is None or before is None or rewarded is None:
        raise Incomplete(f"part {part.name}: the initial student was not tested with its reward")
    rows, found = [], []
    rewards = {m: part.per_seed(m, "reward", SAMPLED) for m in part.methods}
    for method, values in rewards.items():
        rise, gain = over_seeds({seed: value - rewarded for seed, value in values.items()}), part.gain(method, SAMPLED)
        far = over_seeds(part.per_seed(method, "reverse_kl", SAMPLED, "validation"))
        about = [shown(*part.line(method, d).value) for d in (SAMPLED, GREEDY)]
        rows.append([method, shown(*over_seeds(values), digits=3), *about, shown(*far, digits=3)])
        is_gamed = positive(rise[1]) and negative(gain[1])
        verdict = "gamed: surely more reward, surely fewer right answers" if is_gamed else "not surely gamed"
        found.append(
            f"- {method}: reward {shown(*rise, digits=3)}, accuracy {shown(*gain)} against the student before it; {verdict}."
        )
    rows.append(["student before", f"{rewarded:.3f}", f"{before:.1f}", f"{greedy:.1f}", "–"])
    alphas = {method: float(method.split()[1]) for method in part.methods}  # "alpha 0.5"
    reward = {alphas[method]: over_seeds(values) for method, values in rewards.items()}
    panels = [Panel("", "alpha", "reward, test", {"T=1": reward}), metric_panel(part, "", alphas, "alpha")]
    figures.draw(panels, folder / GAMED_FIGURE)
    header = [
        "on the test split [over seeds]",
        "reward, T=1",
        "accuracy, T=1",
        "accuracy, greedy",
        "reverse KL to the teacher, nats",
    ]
    return "\n\n".join(
        [
            "The setting of claim 6 with another reward: the share of the reference's words that stand anywhere in the answer "
            "(`recipes/reproduce/gameable.py`). Naming more numbers than were asked for earns it, and makes the answer wrong. "
            "(The distance is measured on validation. Intervals of changes: the reward's over seeds, accuracy's over seeds and examples.)",
            f"![]({GAMED_FIGURE})",
            markdown(header, rows),
            "\n".join(found),
            f"One rate for all. Tables: [{part.name}]({part.name}/results.md).",
        ]
    )


# Part -> its heading, and what is told of it with a folder for figures.
WITHOUT_VERDICT: Mapping[str, tuple[str, Callable[[Part, Path], str]]] = {
    "sizes": ("When on-policy training pays: size of the student, number of worked answers", sizes),
    "baselines": ("Every baseline, on arithmetic", baselines),
    "later": ("Later methods", later),
    "teachers": ("Several teachers", teachers),
    "rl_gamed": ("A reward that can be gamed", gamed),
}
