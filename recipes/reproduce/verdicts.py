"""The page of verdicts, made from the stored tables alone.

.venv/bin/python recipes/reproduce/verdicts.py               # docs/results/reproduction/README.md
"""

from __future__ import annotations

from pathlib import Path

import figures
from claims import JUDGES, SELF_LARGE
from comparisons import STUDIES
from layout import Verdict, markdown
from reward import HARD, ONE_RATE, WEAK_START
from sections import WITHOUT_VERDICT
from tables import Incomplete, Part, about_other_runs, with_more

FOLDER = Path(__file__).resolve().parents[2] / "docs" / "results" / "reproduction"
PARTS = (
    "methods", "control", "divergences", "diversity", "fractions_few", "fractions", "low_data",
    "rl", ONE_RATE, HARD, WEAK_START, "self", SELF_LARGE, *WITHOUT_VERDICT,
    "multi30k", "multi30k_long", "multi30k_all", "multi30k_low_data", "multi30k_diversity",
)  # fmt: skip
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
    """Markdown: an overview, then a section for each claim, then what no claim is judged by.

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
    for name, (heading, told) in WITHOUT_VERDICT.items():
        if parts[name].is_there:
            try:
                body = told(parts[name], folder)
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


if __name__ == "__main__":
    print(f"wrote {write(FOLDER)}")
