"""The scripts of the reproduction, as its tests import them."""

from __future__ import annotations

import csv
import importlib
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from tutelage.compare.table import COLUMNS

FOLDER = Path(__file__).resolve().parents[2] / "recipes" / "reproduce"
NAMES = (
    "tables",
    "layout",
    "reward",
    "samples",
    "comparisons",
    "cost",
    "claims",
    "figures",
    "sections",
    "gameable",
    "verdicts",
    "diversity",
    "reproduce",
)


@pytest.fixture(scope="module")
def scripts() -> Iterator[dict[str, Any]]:
    """The scripts, which import one another by their bare names."""
    sys.path.insert(0, str(FOLDER))
    try:
        yield {name: importlib.import_module(name) for name in NAMES}
    finally:
        sys.path.remove(str(FOLDER))
        for name in NAMES:
            sys.modules.pop(name, None)


SUMMARY = (
    "budget", "method", "decoding", "metric", "seeds", "steps", "tokens", "seconds",
    "value", "value_low", "value_high", "gain", "gain_low", "gain_high",
)  # fmt: skip


# Added to every accuracy: a mix-up of decodings or splits shows wherever figures are compared or read.
APART = {("greedy", "test"): 0.0, ("T=1", "test"): -0.5, ("greedy", "validation"): 50.0, ("T=1", "validation"): 70.0}


def untrained(teacher: float, initial: float | None, rewards: Mapping[str, Sequence[float]]) -> list[dict[str, Any]]:
    """The rows of the teacher and of the initial student; arguments as those of `write`."""
    runs = []
    for decoding in ("greedy", "T=1"):
        for name, accuracy in (("teacher", teacher), ("initial student", initial)):
            about = {"method": name, "phase": "reference", "split": "test", "decoding": decoding}
            if accuracy is not None:
                runs.append(
                    about | {"metric": "accuracy", "headline": True, "value": accuracy + APART[decoding, "test"]}
                )
            for reward in rewards.get(name, ()):
                runs.append(about | {"metric": "reward", "headline": False, "value": reward})
    return runs


def write(
    folder: Path,
    values: Mapping[str, Sequence[float]],
    *,
    gains: Mapping[str, tuple[float, ...]] | None = None,
    seconds: Mapping[str, float | Sequence[float]] | None = None,
    teacher: float = 98.0,
    initial: float | None = None,
    distance: Mapping[str, Sequence[float]] | None = None,
    validation: Mapping[str, Sequence[float]] | None = None,
    around: float | None = None,
    rewards: Mapping[str, Sequence[float]] | None = None,
) -> Path:
    """A part's tables: each method's accuracy by seed, the same in both decodings and on both splits but for a constant.

    Args:
        folder: of the part; new.
        values: by method.
        gains: with both ends, (1.0, 0.5, 1.5) where not given.
        seconds: a step, of all seeds or of each; 1 where not given.
        teacher, initial: their accuracy; no initial student where that is None.
        distance: from the teacher.
        validation: accuracies that are others on validation.
        around: how far the interval of a mean reaches to either side; None for none.
        rewards: by method, "initial student" among them with one; the same in both decodings.
    """
    folder.mkdir(parents=True)
    runs, summary = [], []
    for method, per_seed in values.items():
        gain = (gains or {}).get(method, (1.0, 0.5, 1.5))
        for decoding in ("greedy", "T=1"):
            estimate = dict(zip(("gain", "gain_low", "gain_high"), gain, strict=True))
            mean = sum(per_seed) / len(per_seed) + APART[decoding, "test"]
            ends = {} if around is None else {"value_low": mean - around, "value_high": mean + around}
            summary.append(
                {
                    "budget": "steps",
                    "method": method,
                    "decoding": decoding,
                    "metric": "accuracy",
                    "seeds": len(per_seed),
                }
                | {"steps": 10, "tokens": 1, "seconds": 1, "value": mean, **ends, **estimate}
            )
            about = {"method": method, "phase": "final", "decoding": decoding, "steps": 10}
            for seed, value in enumerate(per_seed):
                a_step = (seconds or {}).get(method, 1.0)
                row = about | {"seed": seed, "seconds": 10 * (a_step[seed] if isinstance(a_step, Sequence) else a_step)}
                there = {"test": value, "validation": (validation or {}).get(method, per_seed)[seed]}
                for split in ("validation", "test"):
                    shifted = there[split] + APART[decoding, split]
                    runs.append(row | {"split": split, "metric": "accuracy", "headline": True, "value": shifted})
                if rewards is not None:
                    reward = {"metric": "reward", "headline": False, "value": rewards[method][seed]}
                    runs += [row | {"split": split, **reward} for split in ("validation", "test")]
                far = (distance or {}).get(method, [0.0] * len(per_seed))[seed]
                runs.append(row | {"split": "validation", "metric": "reverse_kl", "headline": False, "value": far})
    runs += untrained(teacher, initial, rewards or {})
    for name, columns, rows in (("runs.csv", COLUMNS, runs), ("summary.csv", SUMMARY, summary)):
        with (folder / name).open("w", newline="") as file:
            writer = csv.DictWriter(file, columns)
            writer.writeheader()
            writer.writerows(rows)
    return folder


def judged(scripts: dict[str, Any], judge: str, folder: Path) -> Any:
    parts = {name: scripts["tables"].Part(folder / name) for name in scripts["verdicts"].PARTS}
    return getattr(scripts["claims"], judge)(parts)


FIXED = {"supervised KD": [20.0, 21.0, 22.0], "SeqKD": [20.0, 21.0, 22.0]}
AHEAD = {"on-policy GKD forward_kl": [30.0, 31.0, 32.0], "on-policy GKD reverse_kl": [28.0, 29.0, 30.0]}
