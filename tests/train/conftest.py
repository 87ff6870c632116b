"""Folders of tiny students and teachers, runs in this process, and runs in processes that may be killed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.conftest import build_module, tokenizer
from tutelage.train import config_io
from tutelage.train.config import Config
from tutelage.train.metrics import read_metrics

torch.set_num_threads(1)  # of models this small, threads only wait for one another

TINY: dict[str, Any] = {
    "task": {"name": "arithmetic", "options": {"level": "easy", "train_size": 20}, "max_prompt_tokens": 72},
    "rollout": {"max_new_tokens": 10},
    "train": {"steps": 8, "batch_size": 4, "learning_rate": 0.01, "checkpoint_every": 3, "device": "cpu"},
    "eval": {"final": "none"},
    "log": {"progress": False},
}


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `student-FAMILY` and `teacher-FAMILY` for llama and t5."""
    folder = tmp_path_factory.mktemp("models")
    for family in ("llama", "t5"):
        for seed, (role, hidden) in enumerate({"student": 16, "teacher": 32}.items()):
            module: Any = build_module(family, seed=seed, dtype=torch.float32, vocab=len(tokenizer()), hidden=hidden)
            module.save_pretrained(folder / f"{role}-{family}")
            tokenizer().save_pretrained(folder / f"{role}-{family}")
    return folder


def raw_config(models: Path, run: Path, family: str = "llama", **changes: Any) -> dict[str, Any]:
    """The keys of a tiny run in the folder `run`; `changes` are merged over them."""
    base = {**TINY, "student": str(models / f"student-{family}"), "teacher": str(models / f"teacher-{family}")}
    if changes.get("method") == "sft":  # which refuses a teacher
        del base["teacher"]
    return config_io.deep_merge({**base, "output": str(run)}, config_io.nest(changes))


@pytest.fixture
def make_config(models: Path, tmp_path: Path) -> Callable[..., Config]:
    """`raw_config` in the test's own folder, built."""

    def make(family: str = "llama", **changes: Any) -> Config:
        return config_io.build(raw_config(models, tmp_path / "run", family, **changes))

    return make


@dataclass
class Ended:
    """How a run's process ended: its exit status (negative: the signal that killed it) and what it printed."""

    status: int
    printed: str


@dataclass
class RunServer:
    """A process that forks runs; see run_server.py."""

    process: subprocess.Popen[str] = field(repr=False)

    def run(
        self,
        argv: Sequence[str],
        stop: dict[str, Any] | None = None,
        while_running: Callable[[int], None] = lambda child: None,
    ) -> Ended:
        """Runs the command line in a fresh process; `while_running` gets its process id."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        print(json.dumps({"argv": list(argv), "stop": stop}), file=self.process.stdin, flush=True)
        while_running(int(self.process.stdout.readline()))
        return Ended(*json.loads(self.process.stdout.readline()))


@pytest.fixture(scope="session")
def server(models: Path) -> Iterator[RunServer]:
    script = Path(__file__).with_name("run_server.py")
    folders = [str(models / f"student-{family}") for family in ("llama", "t5")]
    # Loading in threads: torch's pool, made before the fork, is found broken now and then by the child's first threads.
    one_thread = {"OMP_NUM_THREADS": "1", "HF_DEACTIVATE_ASYNC_LOAD": "1"}
    environment = {**os.environ, **one_thread, "CUDA_VISIBLE_DEVICES": ""}
    process = subprocess.Popen(
        [sys.executable, str(script), *folders],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=environment,
    )
    yield RunServer(process)
    assert process.stdin is not None
    process.stdin.close()
    process.wait()


def outcome(output: Path) -> tuple[bytes, list[dict[str, Any]]]:
    """What must not depend on interruptions: the weights' bytes, and the metrics without their times."""
    records = read_metrics(output / "metrics.jsonl")
    kept = [{key: value for key, value in record.items() if key != "seconds"} for record in records]
    return (output / "model" / "model.safetensors").read_bytes(), kept
