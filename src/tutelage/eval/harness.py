"""MMLU, BBH and the like, through lm-evaluation-harness."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tutelage.errors import UserError, how_to_install
from tutelage.eval.results import HarnessScore
from tutelage.models.language_model import LanguageModel

if TYPE_CHECKING:
    from lm_eval.tasks import TaskManager


@dataclass(frozen=True)
class HarnessTasks:
    """Tasks that lm-evaluation-harness has, ready to run.

    Attributes:
        names: of its tasks, groups and tags, each once; patterns are expanded.
        manager: its index, which found them.
    """

    names: tuple[str, ...]
    manager: TaskManager


def find_harness_tasks(tasks: Sequence[str], include: Path | None = None) -> HarnessTasks:
    """The harness's tasks of these names; needs no model, so that a missing package or a wrong name costs no evaluation.

    Args:
        tasks: names of the harness or patterns, as in ("mmlu", "bbh_fewshot_*").
        include: folder with further task definitions (YAML), beside those of the harness.

    Raises:
        UserError: the harness is not installed or does not know a task, or `include` is no folder.
    """
    try:
        # Unused here: it needs more packages than lm_eval alone, and run_harness would miss them only after the evaluation.
        import_module("lm_eval.models.huggingface")
        from lm_eval.tasks import TaskManager
    except ImportError as error:
        raise UserError(
            f"harness={','.join(tasks)} needs lm-evaluation-harness, which cannot be imported ({error}); "
            f"install it: {how_to_install('lm-eval')}"
        ) from error

    if include is not None and not include.is_dir():
        raise UserError(f"harness_tasks={include} is no folder; name the one with your task definitions (YAML)")
    manager = TaskManager(include_path=None if include is None else str(include))
    found = {task: manager.match_tasks([task]) for task in tasks}
    unknown = [task for task, names in found.items() if not names]
    if unknown:
        raise UserError(
            f"lm-evaluation-harness knows no task {', '.join(unknown)}; `lm_eval ls tasks` lists what it knows, and "
            "harness_tasks=FOLDER adds definitions of your own"
        )
    return HarnessTasks(tuple(dict.fromkeys(name for names in found.values() for name in names)), manager)


def run_harness(
    model: LanguageModel,
    tasks: HarnessTasks,
    *,
    batch_rows: int = 64,
    limit: int | None = None,
    seed: int = 0,
) -> tuple[HarnessScore, ...]:
    """Scores of lm-evaluation-harness for a loaded model of either family.

    Args:
        model: the model; it is evaluated as it is, adapters and quantisation included.
        tasks: what `find_harness_tasks` found.
        batch_rows: rows that go through the model at a time.
        limit: examples of each task; None: all.
        seed: of the few-shot examples.

    Source: Gao et al., "A framework for few-shot language model evaluation", https://github.com/EleutherAI/lm-evaluation-harness.
    """
    import lm_eval
    from lm_eval.models.huggingface import HFLM

    results = lm_eval.simple_evaluate(
        model=HFLM(pretrained=model.module, tokenizer=model.tokenizer, batch_size=batch_rows),
        tasks=list(tasks.names),
        task_manager=tasks.manager,
        limit=limit,
        fewshot_random_seed=seed,
        log_samples=False,
    )
    return scores_from(results["results"])


def scores_from(results: Mapping[str, Mapping[str, Any]]) -> tuple[HarnessScore, ...]:
    """The harness's results, {task: {"acc,none": 0.5, "acc_stderr,none": 0.1, "alias": ...}}, as a flat list."""
    found = []
    for task, entries in results.items():
        for key, value in entries.items():
            metric, _, filtering = key.partition(",")
            if not filtering or metric.endswith("_stderr"):
                continue
            stderr = entries.get(f"{metric}_stderr,{filtering}")
            found.append(HarnessScore(task, key, float(value), stderr if isinstance(stderr, float) else None))
    return tuple(found)
