"""Worker of step.py: the native engine beside transformers' `generate`, in one process on one and the same model.

Both sample at temperature 1 with a key-value cache, in evaluation mode, bfloat16, and write the same number of tokens for the
same prompts. The native engine also returns the log-probabilities of its tokens.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from step_tutelage import EndlessModel

from tutelage.models import load
from tutelage.models.options import ModelConfig
from tutelage.rollout.base import Sampling
from tutelage.rollout.native import NativeEngine
from tutelage.types import Prompt


def native(model: EndlessModel, prompts: list[Prompt], new_tokens: int) -> Callable[[], int]:
    """A call that writes with NativeEngine and returns the number of tokens written."""
    engine, sampling = NativeEngine(model), Sampling(max_new_tokens=new_tokens, temperature=1.0)

    def run() -> int:
        rollouts = engine.generate(prompts, sampling, samples=[0] * len(prompts), seed=0)
        return sum(len(rollout.completion_ids) for rollout in rollouts)

    return run


def generate(model: EndlessModel, prompts: list[Prompt], new_tokens: int) -> Callable[[], int]:
    """A call that writes with transformers' `generate`."""
    width = max(len(p.token_ids) for p in prompts)
    ids = torch.tensor([[model.pad_id] * (width - len(p.token_ids)) + list(p.token_ids) for p in prompts])
    mask = torch.tensor([[0] * (width - len(p.token_ids)) + [1] * len(p.token_ids) for p in prompts])
    limits = {"min_new_tokens": new_tokens, "max_new_tokens": new_tokens}
    sampling = {"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0}

    def run() -> int:
        with torch.no_grad():
            out = model.base.generate(
                input_ids=ids, attention_mask=mask, use_cache=True, pad_token_id=model.pad_id, **limits, **sampling
            )
        return int(out[:, width:].numel())

    return run


def measure(runs: dict[str, Callable[[], int]], repetitions: int) -> dict[str, Any]:
    """Seconds of each call, interleaved after one warm-up each; all must write the same number of tokens."""
    tokens = {name: run() for name, run in runs.items()}
    assert len(set(tokens.values())) == 1, f"unequal work: {tokens}"
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repetitions):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - start)
    return {"tokens": tokens.popitem()[1], "seconds": seconds}


def main() -> None:
    spec = json.loads(Path(sys.argv[1]).read_text())
    with (Path(spec["work"]) / "prompts.jsonl").open() as file:
        prompts = [Prompt(i, tuple(json.loads(line)["prompt"])) for i, line in enumerate(file)]
    results = []
    for name, folder in (("student", str(Path(spec["work"]) / "student")), ("teacher", spec["teacher"])):
        loaded = load.load_teacher(folder, ModelConfig(dtype="bfloat16"), torch.device("cpu"))
        model = EndlessModel(loaded.module, loaded.tokenizer, loaded.name)
        for batch in (4, 16):
            some = prompts[:batch]
            runs = {
                "native": native(model, some, spec["new_tokens"]),
                "generate": generate(model, some, spec["new_tokens"]),
            }
            result = measure(runs, spec["repetitions"])
            results.append({"model": name, "parameters": model.num_parameters, "batch": batch, **result})
    Path(sys.argv[2]).write_text(json.dumps(results))


if __name__ == "__main__":
    main()
