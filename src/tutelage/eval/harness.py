"""MMLU, BBH and the like, through lm-evaluation-harness."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tutelage.errors import UserError, how_to_install
from tutelage.eval.results import HarnessScore
from tutelage.models.language_model import LanguageModel


def run_harness(
    model: LanguageModel,
    tasks: Sequence[str],
    *,
    batch_rows: int = 64,
    limit: int | None = None,
    seed: int = 0,
    include: Path | None = None,
) -> tuple[HarnessScore, ...]:
    """Scores of lm-evaluation-harness for a loaded model of either family.

    Args:
        model: the model; it is evaluated as it is, adapters and quantisation included.
        tasks: names of the harness, as in ("mmlu", "bbh").
        batch_rows: rows that go through the model at a time.
        limit: examples of each task; None: all.
        seed: of the few-shot examples.
        include: folder with further task definitions (YAML), beside those of the harness.

    Raises:
        UserError: the harness is not installed, or does not know a task.

    Source: Gao et al., "A framework for few-shot language model evaluation", https://github.com/EleutherAI/lm-evaluation-harness.
    """
    try:
        import lm_eval
        from lm_eval.models.huggingface import HFLM
        from lm_eval.tasks import TaskManager
    except ImportError as error:
        raise UserError(
            f"harness={','.join(tasks)} needs lm-evaluation-harness, which cannot be imported ({error}); "
            f"install it: {how_to_install('lm-eval')}"
        ) from error

    manager = TaskManager(include_path=None if include is None else str(include))
    unknown = [task for task in tasks if not manager.match_tasks([task])]
    if unknown:
        raise UserError(
            f"lm-evaluation-harness knows no task {', '.join(unknown)}; `lm_eval ls tasks` lists what it knows, and "
            "harness_tasks=FOLDER adds definitions of your own"
        )
    results = lm_eval.simple_evaluate(
        model=HFLM(pretrained=model.module, tokenizer=model.tokenizer, batch_size=batch_rows),
        tasks=list(tasks),
        task_manager=manager,
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
