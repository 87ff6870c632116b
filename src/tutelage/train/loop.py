"""The training loop, told top to bottom."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tutelage.data.batching import micro_batches, policy_weights, token_weights
from tutelage.errors import UserError
from tutelage.models.student import Student
from tutelage.rewards.advantages import advantages
from tutelage.rewards.rewarder import Rewarder, StepRewards
from tutelage.rollout.log import RolloutLog
from tutelage.rollout.native import NativeEngine
from tutelage.sources import Mixture
from tutelage.teacher.base import TeacherScorer
from tutelage.train.checkpoint import Checkpoints
from tutelage.train.config import Config
from tutelage.train.importance import ImportanceWeights, weighed
from tutelage.train.metrics import MetricsWriter, Progress, Stopwatch
from tutelage.train.optim import Optimizer
from tutelage.train.returns import SequenceReturns
from tutelage.train.signals import StopRequest
from tutelage.train.tally import Tally
from tutelage.types import Prompt, Rollout

Evaluate = Callable[[int], Mapping[str, float]]


@dataclass
class Parts:
    """Everything a run is made of, ready to go.

    Attributes:
        student: the module whose forward pass returns the loss.
        teacher: None for runs on the negative log-likelihood.
        engine: writes the student's sequences; None when no step needs them.
        source: gives each step its rollouts.
        optimizer: the update.
        checkpoints: of this run.
        log: the rollout log.
        output: the run's folder.
        held_out: the prompts of the split that is evaluated; empty for none.
        rewarder: rewards the student's sequences; None for distillation alone.
        importance: weights the sequences that the current student did not write alone; None: all alike.
        returns: makes the divergence one of whole sequences; None: of tokens.
    """

    student: Student
    teacher: TeacherScorer | None
    engine: NativeEngine | None
    source: Mixture
    optimizer: Optimizer
    checkpoints: Checkpoints
    log: RolloutLog
    output: Path
    held_out: Sequence[Prompt] = ()
    rewarder: Rewarder | None = None
    importance: ImportanceWeights | None = None
    returns: SequenceReturns | None = None


@dataclass
class History:
    """What the loop leaves behind, for the closing table.

    Attributes:
        records: the metrics of this process's steps, first to last.
        watch: seconds by phase, of this process; for steps replayed from the rollout log also those of writing them.
    """

    records: list[dict[str, Any]] = field(default_factory=list)
    watch: Stopwatch = field(default_factory=Stopwatch)


def train(parts: Parts, config: Config, evaluate: Evaluate | None = None) -> History:
    """Runs the steps that are left.

    Args:
        parts: the run.
        config: its configuration.
        evaluate: called every `eval.every` steps with the number of steps done; its numbers join the metrics.

    Raises:
        UserError: the loss or a gradient is not finite, the batch is saved first; or a sequence cannot be rewarded.
        Interrupted: SIGTERM or Ctrl-C, after the step under way and its checkpoint.
    """
    first = restore(parts)
    history = History(watch=Stopwatch(parts.student.model.device))
    watch = history.watch
    with (
        parts.optimizer,
        MetricsWriter(parts.output / "metrics.jsonl", config, config.log.trackers, start_step=first) as writer,
        Progress(config.train.steps, watch, done=first, show=config.log.progress) as progress,
        StopRequest() as stop,
    ):
        counted: dict[str, float] = {}  # seconds that earlier records hold
        for step in range(first, config.train.steps):
            rollouts = next_rollouts(parts, step, watch)

            # Weights come from the whole batch, before it is cut: the cut cannot change the gradient.
            weights, policy, rewards = token_shares(parts, config, rollouts, step, watch)
            tally = Tally(rollouts)
            parts.student.module.train()
            for micro in micro_batches(rollouts, weights, parts.student.model, config.train.micro_batch_tokens, policy):
                with watch.phase("teacher"):
                    signal = parts.teacher.score(micro) if parts.teacher is not None else None
                with watch.phase("update"):
                    output = parts.student(micro, signal)
                    output.loss.backward()
                    tally.add(output)

            with watch.phase("update"):
                grad_norm, learning_rate = parts.optimizer.step(step, tally.loss)
                record = tally.record(grad_norm)
            if not record["finite"]:
                raise UserError(save_failure(parts.output, step, rollouts, record))

            record = {
                "step": step + 1,
                **{k: v for k, v in record.items() if k != "finite"},
                **(rewards.record() if rewards is not None else {}),
                "learning_rate": learning_rate,
            }
            done = step + 1
            if evaluate is not None and config.eval.every and done % config.eval.every == 0:
                with watch.phase("evaluate"):
                    record["evaluation"] = dict(evaluate(done))
            record["seconds"] = {name: total - counted.get(name, 0.0) for name, total in watch.seconds.items()}
            counted = dict(watch.seconds)  # a checkpoint after this step is in the next record
            writer.write(record)
            history.records.append(record)
            progress.update(done, record["loss"], record["tokens"], record.get("reward"))
            if done % config.train.checkpoint_every == 0 or done == config.train.steps or stop.requested:
                with watch.phase("checkpoint"):
                    save(parts, done)
            stop.leave_if_requested(done, config.output)
    return history


def next_rollouts(parts: Parts, step: int, watch: Stopwatch) -> list[Rollout]:
    """The rollouts of a step, and the seconds of writing them on the watch, also where an earlier process spent them."""
    replayed = step in parts.log
    with watch.phase("rollout"):
        if parts.engine is not None:
            parts.engine.publish(version=step)
        rollouts = parts.source.next(step)
    if replayed:  # from a process that died before the next checkpoint; its record of the step is dropped
        watch.add("rollout", parts.log.seconds(step))
    return rollouts


def token_shares(
    parts: Parts, config: Config, rollouts: list[Rollout], step: int, watch: Stopwatch
) -> tuple[list[list[float]], list[list[float]] | None, StepRewards | None]:
    """What every token of a step's batch counts in the divergence and in the policy gradient, and the rewards behind the latter."""
    rewards = None
    if parts.rewarder is not None:
        with watch.phase("reward"):
            rewards = parts.rewarder([draw.prompt for draw in parts.source.draws(step)], rollouts)
    weights, policy = weigh(rollouts, rewards, config)
    factors = None
    if parts.importance is not None:
        with watch.phase("importance"):
            factors = parts.importance(rollouts, step)
            weights = weighed(weights, factors)
    if parts.returns is not None:
        with watch.phase("returns"):
            policy = add(policy, parts.returns(rollouts, weights, factors))
    return weights, policy, rewards


def weigh(
    rollouts: Sequence[Rollout], rewards: StepRewards | None, config: Config
) -> tuple[list[list[float]], list[list[float]] | None]:
    """The weights of a batch's tokens: in the divergence, and in the policy gradient where there is one.

    With a reward they are the two terms of the paper's Eq. 5, alpha D - (1 - alpha) A log q(y), to be minimised.
    """
    weights = token_weights(rollouts, config.loss.normalisation, config.loss.prefix_tokens)
    alpha = config.rl.alpha
    if rewards is None or alpha == 1:
        return weights, None
    above = advantages(rewards.values, rewards.group_size, config.rl.baseline)
    policy = policy_weights(rollouts, [(1 - alpha) * advantage for advantage in above])
    return [[alpha * weight for weight in row] for row in weights], policy


def add(policy: list[list[float]] | None, more: list[list[float]]) -> list[list[float]]:
    """The sum of two policy gradients' weights, token by token."""
    if policy is None:
        return more
    return [[a + b for a, b in zip(*rows, strict=True)] for rows in zip(policy, more, strict=True)]


def restore(parts: Parts) -> int:
    """Loads the newest checkpoint, if any; returns the steps done."""
    loaded = parts.checkpoints.load()
    if loaded is None:
        return 0
    step, state = loaded
    parts.optimizer.load_state_dict(state["optimizer"])
    return step


def save(parts: Parts, step: int) -> None:
    """The rollout log first: a checkpoint never knows more than the log on disk."""
    parts.log.sync()
    parts.checkpoints.save(step, {"optimizer": parts.optimizer.state_dict()})


def save_failure(output: Path, step: int, rollouts: list[Rollout], record: Mapping[str, Any]) -> str:
    """Saves the batch behind a loss or gradient that is not finite, and says what to do."""
    path = output / f"failed-step-{step + 1:08d}.json"
    seen = {k: repr(v) for k, v in record.items()}
    path.write_text(json.dumps({"step": step + 1, "record": seen, "rollouts": [asdict(r) for r in rollouts]}))
    return (
        f"step {step + 1}: the loss is {record['loss']} and the gradient norm {record['grad_norm']}; the weights were not updated. "
        f"The batch is in {path}. Start over (overwrite, or another output) with a lower train.learning_rate or more "
        "train.warmup_steps; a divergence that is infinite where the teacher gives no mass (reverse_kl) becomes finite as jsd(0.9) "
        "or skew_reverse_kl"
    )
