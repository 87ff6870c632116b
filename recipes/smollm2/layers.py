"""How many layers of a fine-tuned teacher may go before a student has nothing to begin with: quality and divergence, nothing trained.

    .venv/bin/python recipes/smollm2/layers.py runs/teacher/config.yaml --layers 30 29 27 24 20 --output docs/results/smollm2-layers.json

The teacher is the model of the run whose configuration is given; the examples are that run's validation examples.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import torch

from tutelage.eval.evaluate import evaluate
from tutelage.models import load
from tutelage.models.language_model import LanguageModel
from tutelage.models.options import ModelConfig, StudentConfig
from tutelage.tasks import load_task
from tutelage.tasks.encode import encode_split
from tutelage.train import config_io
from tutelage.train.config import Config
from tutelage.train.prompts import encoding_of, sampling_of
from tutelage.train.setup import join_ends


def measured(config: Config, teacher: LanguageModel, layers: int) -> dict[str, Any]:
    """The figures of a student of so many of the teacher's layers."""
    options = StudentConfig(init="teacher_layers", layers=layers, dtype=config.student_model.dtype)
    student = load.load_student(None, options, teacher, teacher.device)
    task = load_task(config.task.name, data=config.task.data, **config.task.options)
    encoding = encoding_of(config, student, task)
    join_ends([student, teacher], encoding)
    prompts = encode_split(task, "validation", encoding, config.eval.limit, show_progress=False)
    found = evaluate(
        student,
        task,
        prompts,
        temperatures=(0.0,),
        max_new_tokens=sampling_of(config, task).max_new_tokens,
        batch_rows=config.eval.batch_rows,
        bootstrap=0,
        teacher=teacher,
    )
    (row,) = found.rows
    forward_kl = found.divergence["references"].forward_kl.value
    return {"layers": layers, "examples": row.examples, **row.values, "forward_kl_on_references": forward_kl}


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="config.yaml in the folder of the teacher's run")
    parser.add_argument("--layers", nargs="+", type=int, required=True)
    parser.add_argument("--output", type=Path, required=True, help="the JSON file")
    options = parser.parse_args()
    config = config_io.build(config_io.load_yaml(options.run))
    folder = str(options.run.parent / "model")
    rows = []
    for layers in options.layers:
        teacher = load.load(folder, ModelConfig(dtype=config.student_model.dtype), torch.device("cpu"))
        rows.append(measured(config, teacher, layers))
        print(rows[-1], flush=True)
    options.output.write_text(json.dumps({"run": str(options.run), "rows": rows}, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
