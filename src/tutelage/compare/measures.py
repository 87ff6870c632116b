"""Whether the runs of a comparison can measure what it needs: found out from tasks and records, before anything is trained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from tutelage.compare.config import ComparisonRecipe
from tutelage.compare.plan import Cell
from tutelage.compare.records import RunRecord
from tutelage.errors import MissingSplitError, UserError, nearest
from tutelage.eval.results import REWARD
from tutelage.rewards.base import Sample
from tutelage.rewards.load import is_scorer, load_reward
from tutelage.rewards.options import RewardConfig
from tutelage.tasks import Task, load_task, task_options
from tutelage.tasks.base import SPLITS, Split
from tutelage.tasks.metrics import METRICS
from tutelage.train.config import TaskConfig


def check_tasks(cells: Sequence[Cell], selection: Sequence[tuple[str, str]] = ()) -> None:
    """Builds every task once, asks it for the rows that a comparison needs (train, validation and test), and rewards one of each.

    Args:
        cells: the runs.
        selection: pairs (metric, decoding) that hyperparameters are chosen by.

    Raises:
        UserError: a task is wrong, lacks a split or a metric, or does not have a metric of `selection`; a reward cannot be given to a
            row; names the method.
    """
    checked: list[tuple[TaskConfig, str | None]] = []
    for cell in cells:
        given = (cell.config.task, cell.config.rl.reward if cell.config.eval.reward else None)
        if given in checked:
            continue
        checked.append(given)
        try:
            _check_task(*given, selection)
        except UserError as error:
            raise UserError(f"method {cell.variant}: {error}") from error


def _check_task(given: TaskConfig, rewarded_by: str | None, selection: Sequence[tuple[str, str]]) -> None:
    task = load_task(given.name, data=given.data, **given.options)
    for split in SPLITS:
        _check_split(task, given, split)
    metrics = task.score([""], [task.examples("validation")[0]]).values
    if not metrics:
        raise UserError(
            f"the {task.name} task has metric {task.metric}, so that there is nothing to compare methods by; set task.options.metric to "
            f"{', '.join(name for name in METRICS if name != 'none')} (validation and test rows then need completions)"
        )
    for metric, decoding in selection:
        if metric not in metrics and metric != REWARD:
            raise UserError(
                f"select_by={metric}, {decoding}: the largest value is chosen, of a metric of the {task.name} task or of the reward, and "
                f"{metric} is none; {nearest(metric, [*metrics, REWARD])}"
            )
    if is_scorer(rewarded_by):  # takes any text, and is loaded by the runs
        return
    reward = load_reward(RewardConfig(reward=rewarded_by), task, torch.device("cpu"))
    if reward is not None:
        for example in (task.examples(split)[0] for split in SPLITS):
            prompt, reference = task.prompt(example), task.reference(example)
            text = prompt if isinstance(prompt, str) else "\n".join(message["content"] for message in prompt)
            reward([Sample(text, reference or "", reference, example)])


def check_selection(searched: Sequence[Cell], selection: Sequence[tuple[str, str]]) -> None:
    """Whether hyperparameters can be chosen by the reward, where they are to be.

    Args:
        searched: the runs of the search.
        selection: pairs (metric, decoding).

    Raises:
        UserError: one of the runs measures no reward, or a reward is to be averaged with percentages.
    """
    asked = [f"select_by={metric}, {decoding}" for metric, decoding in selection if metric == REWARD]
    if not asked:
        return
    if len(asked) < len(selection):
        raise UserError(
            f"{asked[0]} beside a metric of the task: a reward has a unit of its own, and their mean says nothing; choose by one of them"
        )
    for cell in searched:
        if cell.config.rl.reward is None or not cell.config.eval.reward:
            raise UserError(
                f"{asked[0]}: method {cell.variant} measures no reward; set its rl.reward (with rl.alpha 1 it is measured and not trained "
                "on; eval.reward must be true), or choose by a metric of the task"
            )


def check_measured(finished: Mapping[str, RunRecord], recipe: ComparisonRecipe) -> None:
    """Whether the finished runs of a search have measured what hyperparameters are chosen by.

    Args:
        finished: records by `Cell.folder.name`.
        recipe: says by what.

    Raises:
        UserError: runs of an earlier version have not; names their folders.
    """
    lacking = [
        str(recipe.output / "runs" / name)
        for name, record in finished.items()
        if not set(recipe.selection) <= {(score.metric, score.decoding) for score in record.scores}
    ]
    if lacking:
        raise UserError(
            f"select_by={'; '.join(recipe.select_by)}: finished runs of an earlier version did not measure that; delete them to have them "
            f"made again: {', '.join(lacking)}"
        )


def _check_split(task: Task, given: TaskConfig, split: Split) -> None:
    """Raises UserError where the split is missing: it names ways out that a comparison has, which are fewer than a run's."""
    try:
        task.examples(split)
    except MissingSplitError as error:
        ways = [f"{split}_data"] + (["validation_fraction"] if split == "validation" else [])
        options = [f"task.options.{option}" for option in ways if option in task_options(given.name)]
        own = f"{' or '.join(options)}, or " if options else ""
        raise UserError(
            f"{given.data or f'the data of the {given.name} task'} has no {split} split, and a comparison needs all three: it trains on "
            f"train, chooses hyperparameters on validation and tests once on test. Under base, set {own}task.data to a folder with "
            f"{', '.join(f'{name}.jsonl' for name in SPLITS)}"
        ) from error
