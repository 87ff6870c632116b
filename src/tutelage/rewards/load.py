"""From the spelling of `rl.reward` to a reward, with everything about it checked before any long work."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from tutelage.errors import UserError, nearest
from tutelage.rewards.base import FunctionReward, Reward, RewardFunction
from tutelage.rewards.options import RewardConfig, RLConfig
from tutelage.rewards.scorer import Scorer
from tutelage.rollout.base import Sampling
from tutelage.tasks.base import Example, Rewarding, Task

SCORER = "scorer:"
_SIGNATURE = "(prompt: str, completion: str, reference: str | None, example: Mapping) -> float"
_OTHERS = "scorer:FOLDER (a local sequence classifier) or package.module:function (a Python function)"


def is_scorer(spelling: str | None) -> bool:
    """Whether `rl.reward` names a learned scorer."""
    return spelling is not None and spelling.startswith(SCORER)


def load_reward(options: RewardConfig, task: Task, device: torch.device) -> Reward | None:
    """The reward that the options name; None where they name none.

    Args:
        options: a run's section `rl`, or that of an evaluation.
        task: whose completions are rewarded.
        device: where a learned scorer computes.

    Raises:
        UserError: the reward is unknown to the task (names the nearest); the function cannot be imported or called; the folder holds no
            scorer.
    """
    if options.reward is None:
        return None
    if is_scorer(options.reward):
        return Scorer(options.reward.removeprefix(SCORER), options.scorer_label, device)
    if ":" in options.reward:
        return FunctionReward(options.reward, import_function(options.reward))
    return task_reward(options.reward, task)


def check_sampling(options: RLConfig, sampling: Sampling) -> None:
    """Raises UserError where a reward is trained on and the student does not draw from the very distribution whose log-probabilities are
    differentiated."""
    if options.reward is None or options.alpha == 1:  # at 1 the reward is measured, and no policy gradient follows it
        return
    if sampling.temperature != 1:
        raise UserError(
            f"rollout.temperature={sampling.temperature}: the policy gradient of a reward is right only on tokens drawn from "
            "the student's own distribution; set rollout.temperature=1"
        )
    if sampling.top_p != 1 or sampling.top_k != 0:
        raise UserError(
            f"rollout.top_p={sampling.top_p}, rollout.top_k={sampling.top_k}: the policy gradient of a reward is right only on "
            "tokens drawn from the student's whole distribution; set rollout.top_p=1 with rollout.top_k=0"
        )


def task_reward(name: str, task: Task) -> FunctionReward:
    """The task's own reward of this name. Raises UserError when it has none of it."""
    known: Mapping[str, Callable[[str, Example], float]] = task.rewards if isinstance(task, Rewarding) else {}
    module, _, function = name.rpartition(".")
    meant = f"did you mean {module}:{function}? " if module else ""
    if not known:
        raise UserError(f"rl.reward={name}: the {task.name} task has no rewards of its own; {meant}use {_OTHERS}")
    if name not in known:
        hint = f"{meant}known are {', '.join(known)}" if meant else nearest(name, known)
        raise UserError(f"rl.reward={name}: no reward of the {task.name} task; {hint}; or use {_OTHERS}")
    mark = known[name]

    def of_task(prompt: str, completion: str, reference: str | None, example: Example) -> float:
        return mark(completion, example)

    return FunctionReward(name, of_task)


def import_function(path: str) -> RewardFunction:
    """The function at "package.module:function"; modules in the working folder are found too.

    Raises:
        UserError: the module cannot be imported, has no such function (names the nearest), or the function does not take
            the four arguments of `RewardFunction`.
    """
    module_name, _, name = path.partition(":")
    folder = str(Path.cwd())
    if folder not in sys.path:  # a console script's path has no working folder; last, so that it shadows nothing
        sys.path.append(folder)
    try:
        module = import_module(module_name)
    except Exception as error:  # importing runs the module, which may raise anything
        raise UserError(
            f"rl.reward={path}: cannot import {module_name or 'a module without a name'}: {type(error).__name__}: {error}; write "
            f"package.module:function, importable from {folder} or from PYTHONPATH"
        ) from error
    functions = [attribute for attribute, value in vars(module).items() if inspect.isroutine(value)]
    function: Any = vars(module).get(name)
    if function is None:
        raise UserError(f"rl.reward={path}: {module_name} has no function {name!r}; {nearest(name, functions)}")
    if not callable(function):
        raise UserError(f"rl.reward={path} is a {type(function).__name__}, not a function of the form {_SIGNATURE}")
    signature = inspect.signature(function)
    try:
        signature.bind("", "", None, {})
    except TypeError as error:
        raise UserError(
            f"rl.reward={path}: {name}{signature} cannot be called ({error}); it needs the form {_SIGNATURE}"
        ) from error
    checked: RewardFunction = function
    return checked
