"""Worker of step.py: the folders and prompts that every system reads. Run by step.py.

Writes teacher/ (when a GGUF file was given), student/ (the teacher's own layers, thinned) and prompts.jsonl, the prompts
of all steps in the order in which Tutelage's own stream gives them.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from smollm2 import convert

from tutelage.data.prompts import PromptStream
from tutelage.models import load
from tutelage.models.options import ModelConfig, StudentConfig
from tutelage.tasks import load_task
from tutelage.tasks.encode import Encoding, encode_split


def main() -> None:
    spec = json.loads(Path(sys.argv[1]).read_text())
    work = Path(spec["work"])
    if spec["gguf"] is not None and not Path(spec["teacher"], "config.json").exists():
        convert(Path(spec["gguf"]), Path(spec["teacher"]))
    device = torch.device("cpu")
    teacher = load.load_teacher(spec["teacher"], ModelConfig(dtype="bfloat16"), device)
    thinned = StudentConfig(init="teacher_layers", layers=spec["layers"], dtype="bfloat16")
    load.save(load.load_student(None, thinned, teacher, device), work / "student")

    task = load_task("gsm8k", data=spec["data"])
    encoding = Encoding(teacher.tokenizer, False, task.generation.max_prompt_tokens)
    stream = PromptStream(encode_split(task, "train", encoding), spec["seed"])
    steps = max(spec["warm_up"] + spec["steps"], 16 // spec["batch"])  # the rollouts alone take up to 16 prompts
    with (work / "prompts.jsonl").open("w") as file:
        for prompt in (draw.prompt for step in range(steps) for draw in stream.batch(step, spec["batch"])):
            row = {"text": task.prompt(prompt.example), "prompt": prompt.token_ids, "completion": prompt.reference_ids}
            file.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
