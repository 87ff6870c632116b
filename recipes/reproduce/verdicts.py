"""The page of verdicts, made from the stored tables alone.

.venv/bin/python recipes/reproduce/verdicts.py               # docs/results/reproduction/README.md
"""

from __future__ import annotations

from pathlib import Path

import figures
from claims import JUDGES, STUDIES
from tables import Incomplete, Part, Verdict, markdown

FOLDER = Path(__file__).resolve().parents[2] / "docs" / "results" / "reproduction"
PARTS = ("methods", "divergences", "diversity", "fractions", "low_data", "rl", "self", "later", "multi30k")
HEAD = """# The paper's claims at the size of two processor cores

Made by `make reproduce` from the tables in this folder's subfolders (`recipes/reproduce/verdicts.py`); nothing here is written by hand.
The paper is Agarwal et al., ICLR 2024 ([arXiv 2306.13649](https://arxiv.org/abs/2306.13649)). Arithmetic word problems: a
decoder-only student of 0.4 million and a teacher of 1.3 million parameters; Multi30k, English to German: encoder-decoders of 0.9 and
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
    path.write_text(page(verdicts, parts, still_open), encoding="utf-8")
    return path


def page(verdicts: list[Verdict], parts: dict[str, Part], still_open: dict[int, str]) -> str:
    """Markdown: an overview, then a section for each claim, then the later methods.

    Args:
        verdicts: of the claims that could be judged.
        parts: by name.
        still_open: claims whose tables lack a run, each with what is missing.
    """
    rows = [[f"[{v.claim}](#{v.anchor})", v.title, f"**{v.outcome}**"] for v in verdicts]
    missing = sorted(set(range(1, len(JUDGES) + 1)) - {v.claim for v in verdicts} - still_open.keys())
    sections = [HEAD, markdown(["claim", "", "here"], rows)]
    if missing:
        sections.append(f"Without tables as yet: claims {', '.join(map(str, missing))}.")
    sections += [f"Claim {claim} cannot be judged yet: {lack}." for claim, lack in still_open.items()]
    sections += [section(verdict) for verdict in verdicts]
    if parts["later"].is_there:
        sections.append(later(parts["later"]))
    return "\n\n".join(sections) + "\n"


def section(verdict: Verdict) -> str:
    """One claim."""
    links = ", ".join(
        f"[{name}]({name}/{'runs.csv' if name == 'diversity' else 'results.md'})" for name in verdict.parts
    )
    return "\n\n".join(
        [
            f'<a id="{verdict.anchor}"></a>\n## {verdict.claim}. {verdict.title}: {verdict.outcome}',
            f"Published: {verdict.published}.",
            f"Criterion: {verdict.criterion}",
            f"![]({verdict.figure})",
            markdown(*verdict.table),
            f"Found: {verdict.found} Tables: {links}.",
        ]
    )


def later(part: Part) -> str:
    """The methods published after the paper, without a verdict."""
    decodings = list(dict.fromkeys(decoding for _, decoding in part.lines))
    rows = [
        [m, *(f"{part.lines[m, d].value[0]:.1f}" for d in decodings), f"{part.lines[m, decodings[0]].seconds:.0f}"]
        for m in part.methods
    ]
    table = markdown([f"{part.metric} on the test split", *decodings, "seconds of training"], rows)
    return f"## Later methods\n\n{table}\n\nOne rate for all, not searched. Intervals: [later](later/results.md)."


if __name__ == "__main__":
    print(f"wrote {write(FOLDER)}")
