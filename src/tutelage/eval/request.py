"""`tutelage eval`: loads a model and a task, evaluates, shows and saves."""

from __future__ import annotations

import dataclasses
import platform
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

import torch
from pydantic import Field
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from tutelage.console import make_console
from tutelage.errors import UserError
from tutelage.eval.evaluate import evaluate
from tutelage.eval.harness import find_harness_tasks, run_harness
from tutelage.eval.results import Evaluation, save, show
from tutelage.models import load, vocabulary
from tutelage.models.language_model import LanguageModel
from tutelage.models.options import ModelConfig
from tutelage.rewards.base import Reward
from tutelage.rewards.load import load_reward
from tutelage.rewards.options import RewardConfig
from tutelage.rewards.rewarder import Rewarder
from tutelage.section import Section
from tutelage.tasks import Task, load_task
from tutelage.tasks.base import Split
from tutelage.tasks.encode import Encoding, encode_split
from tutelage.train.config import TRAINING_KEYS, TaskConfig
from tutelage.train.setup import make_writable, pick_device
from tutelage.types import Prompt


class EvalRequest(Section):
    """An evaluation of a model on a task."""

    model: str
    """Folder or hub name of the model."""
    task: TaskConfig = TaskConfig()
    """What it is evaluated on."""
    teacher: str | None = None
    """Folder or hub name of a teacher to measure the distance from; None: no such measurement."""
    model_options: ModelConfig = ModelConfig()
    """How model and teacher are loaded."""
    rl: RewardConfig = RewardConfig()
    """What the completions are rewarded by, beside the task's metric."""
    split: Split = "test"
    """The split evaluated."""
    temperatures: tuple[float, ...] = (0.0, 1.0)
    """0: greedy; others: sampling from the whole distribution."""
    samples_per_prompt: int = Field(1, ge=1)
    """Completions of each prompt at temperatures above 0; several give pass@k and Self-BLEU."""
    num_beams: int | None = Field(None, ge=1)
    """Width of an additional beam search; 1: none; None: the task's."""
    max_new_tokens: int | None = Field(None, ge=1)
    """Limit of a completion; None: the task's."""
    limit: int | None = Field(None, ge=1)
    """Examples evaluated, of the task and of each harness task; None: all."""
    seed: int = Field(0, ge=0, lt=2**64)
    """Of the samples and of the bootstrap."""
    batch_rows: int = Field(64, ge=1)
    """Rows generated at a time."""
    bootstrap: int = Field(1000, ge=0)
    """Resamples behind the 95% confidence intervals; 0: none."""
    harness: tuple[str, ...] = ()
    """Tasks of lm-evaluation-harness to run as well (mmlu, bbh, ...); alone when no task is given."""
    harness_tasks: Path | None = None
    """Folder with task definitions of your own for lm-evaluation-harness."""
    device: str | None = None
    """cpu, cuda, cuda:1, ...; None: cuda when there is one."""
    output: Path | None = None
    """Folder for results.json and completions.jsonl; None: nothing is written."""
    show: int = Field(3, ge=0)
    """Completions printed."""


def run(request: EvalRequest, *, console: Console | None = None) -> Evaluation:
    """Evaluates as asked, prints the tables, and writes the results where `output` is set.

    The task's own results are printed and written before the harness runs, then its scores are added to them.

    Args:
        request: what to do.
        console: where to print; None: standard output.

    Raises:
        UserError: the model, the task, its data, the reward or a harness task is wrong, the harness is not installed, or the output
            folder cannot be written; before any long work.
    """
    console = console or make_console()
    for name in TRAINING_KEYS:
        value = getattr(request.task, name)
        if value != TaskConfig.model_fields[name].default:
            raise UserError(
                f"task.{name}={value} is for training: an evaluation takes the whole split; drop it, or set limit"
            )
    if request.output is not None:
        make_writable(request.output)
    device = pick_device(request.device)
    harness = find_harness_tasks(request.harness, request.harness_tasks) if request.harness else None
    task = None
    if harness is None or request.task != TaskConfig():
        task = load_task(request.task.name, data=request.task.data, **request.task.options)
    elif request.rl.reward is not None:
        raise UserError(
            f"rl.reward={request.rl.reward} with harness tasks alone, which are not rewarded; name a task (--task.name), or drop it"
        )
    reward = None if task is None else load_reward(request.rl, task, device)
    model = load.load(request.model, request.model_options, device)
    evaluation = Evaluation(model.name, "", (), ())
    if task is not None:
        evaluation = _on_task(request, model, task, reward, console)
        show(evaluation, console, request.show)
        _save(evaluation, request, device)
    if harness is not None:
        scores = run_harness(model, harness, batch_rows=request.batch_rows, limit=request.limit, seed=request.seed)
        show(Evaluation(model.name, "", (), (), harness=scores), console)
        evaluation = dataclasses.replace(evaluation, harness=scores)
        _save(evaluation, request, device)
    return evaluation


def _save(evaluation: Evaluation, request: EvalRequest, device: torch.device) -> None:
    """Writes what is known so far, over what was; nothing where `output` is not set."""
    if request.output is not None:
        save(evaluation, request.output, {"request": request.model_dump(mode="json"), "versions": versions(device)})


def _on_task(
    request: EvalRequest, model: LanguageModel, task: Task, reward: Reward | None, console: Console
) -> Evaluation:
    encoding = Encoding(
        model.tokenizer,
        model.is_encoder_decoder,
        max_prompt_tokens=request.task.max_prompt_tokens or task.generation.max_prompt_tokens,
        use_chat=request.task.use_chat,
        skip_long=request.task.skip_long_prompts,
    )
    max_new_tokens = request.max_new_tokens or task.generation.max_new_tokens
    prompts = encode_split(task, request.split, encoding, request.limit)
    model.end_at(encoding.end_ids)
    _check_positions(model, prompts, max_new_tokens)
    teacher = None
    if request.teacher is not None:
        teacher = load.load_teacher(request.teacher, request.model_options, model.device)
        vocabulary.agree(model, teacher)
    columns = (TextColumn("evaluating"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        row = bar.add_task("", total=None)
        return evaluate(
            model,
            task,
            prompts,
            temperatures=request.temperatures,
            max_new_tokens=max_new_tokens,
            seed=request.seed,
            batch_rows=request.batch_rows,
            samples_per_prompt=request.samples_per_prompt,
            num_beams=request.num_beams or task.generation.num_beams,
            bootstrap=request.bootstrap,
            teacher=teacher,
            rewarder=None if reward is None else Rewarder(reward, task, model.tokenizer),
            progress=lambda done, total: bar.update(row, completed=done, total=total),
        )


def _check_positions(model: LanguageModel, prompts: Sequence[Prompt], max_new_tokens: int) -> None:
    """Raises UserError when a completion of these prompts could pass the model's last position."""
    longest = max((len(prompt.token_ids) for prompt in prompts), default=0)
    lack = model.lack_of_positions(longest, max_new_tokens)
    if lack is not None:
        raise UserError(
            f"{lack}, but the longest prompt has {longest} tokens and {max_new_tokens} may follow; lower max_new_tokens, or leave "
            "long prompts out (task.max_prompt_tokens with task.skip_long_prompts)"
        )


def versions(device: torch.device) -> dict[str, str]:
    """Versions of what shapes the figures, and the name of the device they come from."""
    libraries = ("tutelage", "torch", "transformers", "tokenizers", "sacrebleu", "rouge-score", "numpy")
    return {
        "python": platform.python_version(),
        "device": _device_name(device),
        **{name: version(name) for name in libraries},
    }


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type == "cpu":
        return platform.processor() or platform.machine()
    return str(device)
