"""Starts runs in processes of their own, which may be killed: imports once, then forks for every run.

    python run_server.py MODEL_FOLDER ...

Reads one JSON request a line: {"argv": [...], "stop": null or {"target", "call", "when", "signal"}}; answers with the
child's process id at once, and with its exit status (negative: killed by that signal) and standard error when it has ended.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from typing import Any

import torch

from tutelage import cli, run
from tutelage.models import load
from tutelage.models.options import LoraConfig, ModelConfig
from tutelage.rollout.log import RolloutLog
from tutelage.train.config import TrainConfig
from tutelage.train.optim import Optimizer


def stop_at(target: str, call: int, when: str, signal: int) -> None:
    """Makes the process signal itself at the n-th call (from 1) of "module:Class.function".

    Args:
        when: "before" or "after" the call; "torn": after half of what it writes (`RolloutLog.append`, `torch.save`).
    """
    module, _, path = target.partition(":")
    owner: Any = importlib.import_module(module)
    *outer, name = path.split(".")
    for part in outer:
        owner = getattr(owner, part)
    original: Callable[..., Any] = getattr(owner, name)
    calls = 0

    def wrapped(*arguments: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == call and when != "after":
            if when == "torn":
                write_half(original, arguments)
            os.kill(os.getpid(), signal)
        result = original(*arguments, **options)
        if calls == call and when == "after":
            os.kill(os.getpid(), signal)
        return result

    setattr(owner, name, wrapped)


def write_half(original: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    """What a call would have written to its file, without the second half."""
    file = arguments[0]._file if isinstance(arguments[0], RolloutLog) else arguments[1]
    start = file.tell()
    original(*arguments)
    file.flush()
    os.truncate(file.name, (start + file.tell()) // 2)


def import_what_runs_import(folders: Sequence[str]) -> None:
    """Libraries import much of themselves when first used. No backward pass: autograd cannot be forked after one."""
    assert run.run
    cli.train_config(["--student", "s", "--teacher", "t"])
    for folder in folders:
        model = load.load(folder, ModelConfig(), torch.device("cpu"))
        Optimizer(load.add_lora(model, LoraConfig(rank=1)).module, TrainConfig(steps=1))
        with tempfile.TemporaryDirectory() as scratch:
            model.base.save_pretrained(scratch)


def serve() -> None:
    """Answers requests until standard input ends."""
    for line in sys.stdin:
        request = json.loads(line)
        with tempfile.TemporaryFile("w+") as errors:
            child = os.fork()
            if child == 0:
                os.dup2(errors.fileno(), sys.stderr.fileno())
                os.dup2(os.open(os.devnull, os.O_RDWR), sys.stdin.fileno())
                os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
                if request["stop"] is not None:
                    stop_at(**request["stop"])
                status = 1
                try:
                    status = cli.main(request["argv"])
                finally:
                    if status == 1:
                        import traceback

                        traceback.print_exc()
                    sys.stderr.flush()
                    os._exit(status)
            print(child, flush=True)
            _, waited = os.waitpid(child, 0)
            errors.seek(0)
            print(json.dumps([os.waitstatus_to_exitcode(waited), errors.read()]), flush=True)


if __name__ == "__main__":
    torch.set_num_threads(1)
    import_what_runs_import(sys.argv[1:])
    serve()
