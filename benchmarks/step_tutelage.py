"""Worker of step.py: times Tutelage's own training loop. Run by step.py, one process a repetition."""

from __future__ import annotations

import contextlib
import itertools
import json
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import torch
from machine import peak_memory_mb, resident_memory_mb, versions

from tutelage.models import load
from tutelage.models.language_model import LanguageModel
from tutelage.models.options import StudentConfig
from tutelage.train import loop
from tutelage.train.config import Config
from tutelage.train.setup import prepare


class EndlessModel(LanguageModel):
    """A model that no token stops, so that every system writes the same number of tokens."""

    @property
    def eos_ids(self) -> frozenset[int]:
        return frozenset()


class EnoughError(Exception):
    """The last timed step is done; leaves the loop before it writes its final checkpoint."""


def main() -> None:
    spec = json.loads(Path(sys.argv[1]).read_text())
    imported_mb = resident_memory_mb()
    work, total = Path(spec["work"]), spec["warm_up"] + spec["steps"]
    options = StudentConfig(dtype="bfloat16", gradient_checkpointing=spec["gradient_checkpointing"])
    config = Config(
        teacher=spec["teacher"],
        student=str(work / "student"),
        student_model=options,
        teacher_model={"dtype": "bfloat16"},
        output=work / "run",
        overwrite=True,
        divergence=f"jsd({spec['beta']})",
        student_data_fraction=1.0,
        seed=spec["seed"],
        task={"name": "gsm8k", "data": spec["data"]},
        rollout={"max_new_tokens": spec["new_tokens"], "temperature": 1.0},
        loss={"normalisation": "token"},  # as in the other systems
        train={
            "steps": total + 1,
            "batch_size": spec["batch"],
            "learning_rate": spec["learning_rate"],
            "schedule": "constant",
        },
        eval={"every": 1, "final": "validation", "limit": 1},  # only the hook after each step is used
        log={"progress": False},
    )
    student = load.load_student(config.student, options, None, torch.device("cpu"))
    parts, _ = prepare(config, student=EndlessModel(student.module, student.tokenizer, student.name))
    marks = [time.perf_counter()]

    def mark(step: int) -> Mapping[str, float]:
        marks.append(time.perf_counter())
        if step == total:
            raise EnoughError
        return {}

    with contextlib.suppress(EnoughError):
        loop.train(parts, config, mark)
    seconds = [after - before for before, after in itertools.pairwise(marks)]
    with (work / "run" / "metrics.jsonl").open() as file:  # all steps but the last, which the exception left unwritten
        phases = [row["seconds"] for row in map(json.loads, file) if "seconds" in row]
    written = [rollouts for _, rollouts in parts.log]
    result = {
        "seconds": seconds[spec["warm_up"] :],
        "warm_up_seconds": seconds[: spec["warm_up"]],
        "peak_mb": peak_memory_mb(),
        "imported_mb": imported_mb,
        "prompt_tokens": [sum(len(r.prompt_ids) for r in rollouts) for rollouts in written],
        "completion_tokens": [sum(len(r.completion_ids) for r in rollouts) for rollouts in written],
        "phases": phases[spec["warm_up"] :],
        "versions": versions("tutelage", "torch", "transformers"),
    }
    Path(sys.argv[2]).write_text(json.dumps(result))


if __name__ == "__main__":
    main()
