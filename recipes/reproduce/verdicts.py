"""The page of verdicts, made from the stored tables alone.

.venv/bin/python recipes/reproduce/verdicts.py               # docs/results/reproduction/README.md
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import figures
from claims import JUDGES
from comparisons import STUDIES
from layout import Panel, Verdict, markdown, values_table
from reward import HARD, ONE_RATE, WEAK_START
from tables import (
    DECODINGS,
    Estimated,
    Incomplete,
    Part,
    about_other_runs,
    above,
    shown,
    with_more,
)

FOLDER = Path(__file__).resolve().parents[2] / "docs" / "results" / "reproduction"
PARTS = (
    "methods", "baselines", "control",
    "divergences", "diversity", "fractions_few", "fractions", "low_data", "rl", ONE_RATE, HARD, WEAK_START, "self", "sizes",
    "later", "multi30k", "multi30k_long", "multi30k_all", "multi30k_low_data", "multi30k_diversity",
)  # fmt: skip
SIZES_FIGURE = "sizes.png"
HEAD = """# The paper's claims at the size of two processor cores

Made by `make reproduce` from the tables in this folder's subfolders (`recipes/reproduce/verdicts.py`); nothing here is written by hand.
The paper is Agarwal et al., ICLR 2024 ([arXiv 2306.13649](https://arxiv.org/abs/2306.13649)). Arithmetic word problems: a
decoder-only student of 0.4 million and a teacher of 1.3 million parameters; Multi30k, English to German: encoder-decoders of 1.0 and
6.3 million. A claim that does not hold here may hold at the paper's size, and the other way round. Intervals are 95%;
those over seeds leave out that other test examples would give other values.
"""


def write(folder: Path) -> Path:
    """Writes README.md into the folder of the tables; its path."""
    studies = sorted(path.name for path in folder.glob(f"{STUDIES}*"))
    parts = {name: Part(folder / name) for name in (*PARTS, *studies)}
    verdicts, still_open = [], {}
    for claim, judge in enumerate(JUDGES, 1):
        try:
            verdict = judge(parts)
        except Incomplete as lack:
            still_open[claim] = str(lack)
        else:
            verdicts += [] if verdict is None else [verdict]
    for verdict in verdicts:
        figures.draw(verdict.panels, folder / verdict.figure)
    path = folder / "README.md"
    folder.mkdir(parents=True, exist_ok=True)
    path.write_text(page(verdicts, parts, still_open, folder), encoding="utf-8")
    return path


def page(verdicts: list[Verdict], parts: dict[str, Part], still_open: dict[int, str], folder: Path) -> str:
    """Markdown: an overview, then a section for each claim, then the sizes of student and the later methods.

    Args:
        verdicts: of the claims that could be judged.
        parts: by name.
        still_open: claims whose tables lack a run, each with what is missing.
        folder: for figures.
    """
    rows = [
        [f"[{v.claim}](#{v.anchor})", v.title, f"**{v.outcome}**", f"{sum(v.checks)} of {len(v.checks)}"]
        for v in verdicts
    ]
    missing = sorted(set(range(1, len(JUDGES) + 1)) - {v.claim for v in verdicts} - still_open.keys())
    sections = [HEAD, markdown(["claim", "", "here", "checks that hold"], rows)]
    if missing:
        sections.append(f"Without tables as yet: claim{'s' * (len(missing) > 1)} {', '.join(map(str, missing))}.")
    sections += [f"Claim {claim} cannot be judged yet: {lack}." for claim, lack in still_open.items()]
    sections += [section(verdict, folder) for verdict in verdicts]
    without: tuple[tuple[str, str, Callable[[Part], str]], ...] = (
        (
            "sizes",
            "When on-policy training pays: size of the student, number of worked answers",
            lambda part: sizes(part, folder),
        ),
        ("baselines", "Every baseline, on arithmetic", baselines),
        ("later", "Later methods", later),
    )
    for name, heading, told in without:
        if parts[name].is_there:
            try:
                body = told(parts[name])
            except Incomplete as lack:
                body = f"Not complete yet: {lack}."
            sections += [f"## {heading}", body]
    return "\n\n".join(sections) + "\n"


def section(verdict: Verdict, folder: Path) -> str:
    """One claim, with links to the tables in the folder."""
    parts = [folder / part for part in dict.fromkeys(verdict.parts)]
    links = ", ".join(
        f"[{path.name}]({path.name}/{'runs.csv' if 'diversity' in path.name else 'results.md'})"
        for part in parts
        for path in with_more(part, "runs.csv")
    )
    read = [
        part for part in parts if "diversity" in part.name
    ] or parts  # claim 4 names those that its students are from, too
    found = [*verdict.found.splitlines(), *(sentence for part in read if (sentence := about_other_runs(part)))]
    return "\n\n".join(
        [
            f'<a id="{verdict.anchor}"></a>\n## {verdict.claim}. {verdict.title}: {verdict.outcome}',
            f"Published: {verdict.published}.",
            f"Criterion: {verdict.criterion}",
            f"![]({verdict.figure})",
            markdown(*verdict.table),
            _found(found),
            f"Tables: {links}.",
        ]
    )


def _found(lines: list[str]) -> str:
    return "Found:\n\n" + "\n".join(f"- {line}" for line in lines) if len(lines) > 1 else f"Found: {lines[0]}"


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


def without_verdict(part: Part, remarks: list[str]) -> str:
    """The table of a part that no claim is judged by."""
    header, values = values_table(part, part.methods)
    seconds = {m: f"{part.line(m, DECODINGS[0]).seconds:.0f}" for m in part.methods}
    rows = [[*row, seconds.get(row[0], "–")] for row in values]
    links = ", ".join(f"[{path.name}]({path.name}/results.md)" for path in with_more(part.folder, "runs.csv"))
    about = " ".join(f"{remark}." for remark in [*remarks, f"Tables: {links}"])
    return f"{markdown([*header, 'seconds of training'], rows)}\n\n{about}"


def baselines(part: Part) -> str:
    """All methods that the paper compares, on arithmetic."""
    remarks = [
        "Outputs to 1,000 problems, own sequences to 10,000",
        "One rate for fixed, one for own and mixed sequences",
    ]
    return without_verdict(part, remarks)


def later(part: Part) -> str:
    """The methods published after the paper."""
    remarks = (
        ["DistiLLM has what on-policy GKD does without: half its steps are on the references of the 10,000 problems"]
        if "DistiLLM" in part.methods
        else []
    )
    return without_verdict(part, [*remarks, "Rates: the best on validation of those tried"])


if __name__ == "__main__":
    print(f"wrote {write(FOLDER)}")
