"""The evaluation before training: made by the first of the runs that start from one student, read by the others."""

from __future__ import annotations

import fcntl
import hashlib
import json
from collections.abc import Callable
from pathlib import Path

from tutelage.compare import fingerprints
from tutelage.eval.results import Evaluation, read, save
from tutelage.train.config import Config
from tutelage.train.methods import resolve


class Start:
    """The evaluation of a run's initial student, kept beside the runs of its comparison.

    Args:
        config: of the run.
        folder: of all such evaluations.
    """

    def __init__(self, config: Config, folder: Path) -> None:
        self.folder = folder / address(config)

    def __call__(self, make: Callable[[], Evaluation]) -> Evaluation:
        """The evaluation that is there; else the one that `make` makes, while the runs that need it too wait for it."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / ".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # the system lifts it when the process ends, however it ends
            whole = self.folder / "evaluation"
            saved = read(whole)
            if saved is not None:
                return saved[0]
            made = make()
            unfinished = self.folder / "unfinished"
            save(made, unfinished, {})
            unfinished.rename(whole)  # so that a kill leaves all of it or nothing
            return made


def address(config: Config) -> str:
    """A name for all that shapes the evaluation before training, and of the task for all keys, which say what is held out."""
    keys = config.model_dump(mode="json")
    about = {
        name: keys[name] for name in ("student", "student_model", "teacher", "teacher_model", "seed", "task", "eval")
    }
    about["teachers"] = [keys["other_teachers"], keys["teacher_weights"]]
    about["rollout"] = keys["rollout"]["max_new_tokens"]
    about["device"] = keys["train"]["device"]
    about["marked"] = resolve(config).divergence is not None  # by the teacher: its divergence is measured then
    about["weights"] = [
        fingerprints.of_model(model) for model in (config.student, config.teacher, *config.other_teachers)
    ]
    about["files"] = fingerprints.of_data(config.task)
    if config.rl.reward is not None:
        about["reward"] = [config.rl.reward, config.rl.scorer_label, fingerprints.of_reward(config.rl.reward)]
    return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:16]
