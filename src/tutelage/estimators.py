"""Divergences from less than the whole distribution: the teacher's top tokens, or its view of the sampled token.

*Top-k.* Both distributions are coarsened to the K tokens and one outcome for all others, and compared there; that is exact
at K = V. By the data-processing inequality no f-divergence grows by it: the result is a lower bound, at least 0 up to
rounding. `adaptive_kl` is no f-divergence and may grow, and so may a registered divergence.

*Sampled tokens.* With tokens y drawn from the student Q and r = p(y)/q(y), Schulman's estimators of KL(Q||P) are

    k1 = -log r        k2 = (log r)^2 / 2        k3 = r - 1 - log r

k1 and k3 are unbiased, k2 is not. As a *loss*, differentiated through log q(y), the roles change, because the
derivative does not see that the draw depends on q:

    E k1' = E[grad log q] = 0                     no signal at all
    E k2' = E[(log q - log p) grad log q]         the gradient of KL(Q||P)
    E k3' = E[(1 - p/q) grad log q]               the gradient of KL(P||Q), not of KL(Q||P)

Source: J. Schulman, Approximating KL divergence, 2020. The gradients follow from E[grad log q] = 0.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from tutelage import divergences
from tutelage.divergences import Divergence
from tutelage.errors import UserError, nearest
from tutelage.types import Rollout

# --- top-k and tail ---------------------------------------------------------------------------------------------------

# Rounding of K float32 log-probabilities; the sum of theirs may pass 1 by that much.
_SUM_TOLERANCE = 1e-4


def coarsen(logp: Tensor, token_ids: Tensor) -> Tensor:
    """Log-probabilities of the tokens named, and of all others together: [..., V], [..., K] -> [..., K + 1].

    Differentiable by autograd. The mass of the others is summed over their own log-probabilities, never 1 - sum, and is
    -inf where there are none.
    """
    tail = logp.scatter(-1, token_ids, -math.inf)
    # The derivative of logsumexp is NaN where every argument is -inf; those are constants.
    is_empty = torch.isneginf(tail).all(-1, keepdim=True)
    tail_logp = tail.masked_fill(is_empty, 0.0).logsumexp(-1, keepdim=True).masked_fill(is_empty, -math.inf)
    return torch.cat([logp.gather(-1, token_ids), tail_logp], dim=-1)


def log1mexp(x: Tensor) -> Tensor:
    """log(1 - exp(x)) for x <= 0, accurate at both ends. [...] -> [...].

    Source: M. Maechler, Accurately computing log(1 - exp(-|a|)), 2012, Eq. 7.
    """
    return torch.where(x > -math.log(2), torch.log(-torch.expm1(x)), torch.log1p(-torch.exp(x)))


def tail_logp(logp: Tensor, vocab_size: int) -> Tensor:
    """Log of the mass that K log-probabilities leave to all other tokens: [..., K] -> [...], in the dtype of `logp`.

    For teachers that report their top tokens only. Computed in float64. What is left of a sum within one unit in the last
    place of 1, or above it by rounding, is not known from `logp`, but is not 0: a softmax gives every token some probability.
    The tail then has that unit (1.2e-7 in float32), the least that `logp` can tell from 0; without it a divergence from the
    teacher's tail to the student's would be infinite. -inf, no tail at all, is the answer at K = V only. Where the teacher's
    logits are at hand, `fused.teacher_topk` is more accurate: 1 - sum cancels.

    Args:
        logp: [..., K], of distinct tokens.
        vocab_size: size of the vocabulary the probabilities are over.

    Raises:
        UserError: the probabilities sum to more than 1, or there are more of them than tokens.
    """
    if logp.shape[-1] > vocab_size:
        raise UserError(
            f"{logp.shape[-1]} log-probabilities a token, but the vocabulary has {vocab_size} tokens; lower k of the top-k signal"
        )
    total = logp.double().logsumexp(-1)
    excess = float(total.max()) if total.numel() else -math.inf
    if not excess <= _SUM_TOLERANCE:  # also catches NaN
        raise UserError(
            f"the teacher's top-{logp.shape[-1]} probabilities sum to {math.exp(excess):.6g}, more than 1: they are not "
            "natural-log probabilities of distinct tokens of one distribution; check the teacher's log-probability mode"
        )
    if logp.shape[-1] == vocab_size:
        return torch.full_like(total, -math.inf, dtype=logp.dtype)
    unit = math.log(torch.finfo(logp.dtype).eps)
    return log1mexp(total.clamp(max=0.0)).clamp(min=unit).to(logp.dtype)


# --- sampled tokens ---------------------------------------------------------------------------------------------------


def k1(student_logp: Tensor, teacher_logp: Tensor) -> Tensor:
    """log q - log p of sampled tokens: unbiased for KL(Q||P), of either sign. [...], [...] -> [...].

    Its derivative through log q is 0 in expectation: a figure to report or a reward, never a loss.
    """
    return student_logp - teacher_logp


def k2(student_logp: Tensor, teacher_logp: Tensor) -> Tensor:
    """(log q - log p)^2 / 2 of sampled tokens: as a loss, the gradient of KL(Q||P). [...], [...] -> [...]."""
    return (student_logp - teacher_logp).square() / 2


def k3(student_logp: Tensor, teacher_logp: Tensor) -> Tensor:
    """p/q - 1 - log(p/q) of sampled tokens: unbiased for KL(Q||P), never negative up to rounding. [...], [...] -> [...].

    As a loss it has the gradient of KL(P||Q).
    """
    log_ratio = teacher_logp - student_logp
    return torch.expm1(log_ratio) - log_ratio


def k1_in_reward(student_logp: Tensor, teacher_logp: Tensor) -> Tensor:
    """The score-function surrogate of reward -k1: stop_gradient(log q - log p) * log q. [...], [...] -> [...].

    What reinforcement learning with a per-token KL penalty in the reward (no discounting over later tokens) follows; its
    gradient is k2's, draw by draw.
    """
    return (student_logp - teacher_logp).detach() * student_logp


EstimatorFn = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Estimator:
    """A function of the sampled token's two log-probabilities; two are equal when they have the same name.

    Attributes:
        name: "k1", "k2" or "k3".
        value: (student_logp [...], teacher_logp [...]) -> [...], differentiable by autograd.
        slope: the derivative of `value` in student_logp, [...].
        divergence: the divergence whose gradient this has as a loss, in expectation; None: it has none.
    """

    name: str
    value: EstimatorFn = field(compare=False)
    slope: EstimatorFn = field(compare=False)
    divergence: str | None = field(compare=False)


_ESTIMATORS = {
    "k1": Estimator("k1", k1, lambda student_logp, teacher_logp: torch.ones_like(student_logp), None),
    "k2": Estimator("k2", k2, k1, "reverse_kl"),
    "k3": Estimator(
        "k3", k3, lambda student_logp, teacher_logp: -torch.expm1(teacher_logp - student_logp), "forward_kl"
    ),
}
_LOSSES = {estimator.divergence: estimator for estimator in _ESTIMATORS.values() if estimator.divergence is not None}


def parse(name: str) -> Estimator:
    """The estimator called `name`: "k1", "k2" or "k3". Raises UserError for any other."""
    if name not in _ESTIMATORS:
        raise UserError(f"unknown estimator {name!r}: {nearest(name, _ESTIMATORS)}")
    return _ESTIMATORS[name]


def as_loss(wanted: Estimator | Divergence | str) -> Estimator:
    """The estimator to differentiate for a divergence: k2 for reverse_kl, k3 for forward_kl.

    Args:
        wanted: a divergence or its spelling, or an estimator or its name.

    Raises:
        UserError: k1, whose gradient is 0 in expectation; or a divergence that sampled tokens cannot estimate.
    """
    if isinstance(wanted, Estimator) or wanted in _ESTIMATORS:
        estimator = wanted if isinstance(wanted, Estimator) else parse(str(wanted))
        if estimator.divergence is None:
            raise UserError(
                f"estimator {estimator.name} as a loss has the gradient 0 in expectation and teaches nothing; use k2 (the "
                "gradient of reverse_kl) or k3 (that of forward_kl)"
            )
        return estimator
    divergence = divergences.parse(wanted)
    if divergence.name not in _LOSSES:
        raise UserError(
            f"divergence {divergence} needs more than the teacher's probability of the sampled token: a sampled signal "
            f"supports {' and '.join(sorted(_LOSSES))}; use one of them, or the signal hidden or topk(64), which support every "
            "divergence"
        )
    return _LOSSES[divergence.name]


# --- tokens must be the student's own ---------------------------------------------------------------------------------

_REMEDY = "use the signal hidden or topk(64), which hold on any sequence, or"


def check_on_policy(
    student_data_fraction: float,
    temperature: float,
    top_p: float,
    top_k: int,
    loss_temperature: float = 1.0,
    teacher_share: float = 0.0,
) -> None:
    """Raises UserError unless a run's tokens are draws from the very distribution that its loss compares.

    To be called when the configuration resolves, for a sampled-token signal.

    Args:
        student_data_fraction: share of steps on the student's own sequences.
        temperature, top_p, top_k: how they are sampled (`rollout.base.Sampling`).
        loss_temperature: divides both models' logits in the loss.
        teacher_share: of the teacher in the mixture that the tokens are drawn from.
    """
    if student_data_fraction != 1:
        raise UserError(
            f"student_data_fraction={student_data_fraction}: a sampled signal is right only on tokens the student drew itself; "
            f"{_REMEDY} student_data_fraction=1"
        )
    if temperature != loss_temperature:
        raise UserError(
            f"rollout.temperature={temperature} and loss.temperature={loss_temperature}: a sampled signal is right only on "
            f"tokens drawn from the distribution the loss compares; {_REMEDY} set both to 1"
        )
    if top_p != 1 or top_k != 0:
        raise UserError(
            f"rollout.top_p={top_p}, rollout.top_k={top_k}: a sampled signal is right only on tokens drawn from the student's "
            f"whole distribution; {_REMEDY} rollout.top_p=1 with rollout.top_k=0"
        )
    if teacher_share > 0:
        raise UserError(
            f"rollout.teacher_share={teacher_share}: a sampled signal is right only on tokens drawn from the student's own "
            f"distribution, not from its mixture with the teacher's; {_REMEDY} rollout.teacher_share=0"
        )


def check_rollouts(rollouts: Iterable[Rollout]) -> None:
    """Raises UserError unless the student wrote all of these sequences, with the weights of one step.

    What a rollout cannot say (temperature, truncation) is `check_on_policy`'s.
    """
    versions = set()
    for rollout in rollouts:
        if rollout.source != "student":
            raise UserError(
                f"a sampled signal is right only on tokens the student drew itself, but the sequence of prompt "
                f"{rollout.prompt_id} is from the {rollout.source}; {_REMEDY} student_data_fraction=1"
            )
        versions.add(rollout.policy_version)
    if len(versions) > 1:
        raise UserError(
            f"a sampled signal is right only on tokens of the current student, but these sequences were written with the weights "
            f"of steps {sorted(versions)}; {_REMEDY} train on fresh sequences only"
        )
