"""Token-level divergences between a teacher P and a student Q, as pure functions of log-probabilities.

Every function takes two tensors of natural-log probabilities over the last dimension and returns one value per
distribution, in nats: `[..., V], [..., V] -> [...]`. Log-probabilities may be -inf: 0 * log 0 counts as 0, and a
divergence that is infinite is returned as inf. Nothing is clamped.

The losses need each divergence's derivative too. `Divergence.score` gives value and derivative together, in closed form
for the divergences of this module; `parse` turns the spelling used in configurations into a `Divergence`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from tutelage.errors import UserError, nearest

DivergenceFn = Callable[[Tensor, Tensor], Tensor]


class Distribution(NamedTuple):
    """Log-probabilities beside their exponentials, so that each is computed once. Both [..., V]."""

    logp: Tensor
    p: Tensor

    @classmethod
    def of(cls, logp: Tensor) -> Distribution:
        """The distribution with these log-probabilities."""
        return cls(logp, logp.exp())

    @classmethod
    def of_logits_(cls, logits: Tensor) -> Distribution:
        """The distribution softmax(logits); `logits` [..., V] are overwritten with the log-probabilities.

        softmax exponentiates once and fast; the normaliser follows from the likeliest entry, whose probability is at
        least 1 / V. log_softmax with exp after it would take twice the time.
        """
        p = logits.softmax(-1)
        normaliser = logits.amax(-1, keepdim=True) - p.amax(-1, keepdim=True).log_()
        return cls(logits.sub_(normaliser), p)


ScoreFn = Callable[[Distribution, Distribution], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Divergence:
    """A divergence D(P||Q) with its derivative; two are equal when they are spelled the same.

    Attributes:
        name: the spelling `parse` accepts, parameters included: "jsd(0.9)".
        value: (teacher_logp [..., V], student_logp [..., V]) -> [...], differentiable by autograd.
        closed_form: (teacher, student) -> (value [...], derivative [..., V]), the derivative being dD/d(student_logp)
            with log-probabilities taken as independent; None for user-registered divergences, which fall back on autograd.
    """

    name: str
    value: DivergenceFn = field(compare=False)
    closed_form: ScoreFn | None = field(default=None, compare=False)

    def __str__(self) -> str:
        return self.name

    def __call__(self, teacher_logp: Tensor, student_logp: Tensor) -> Tensor:
        """`value`, [...]. Raises UserError where it has another shape, which would broadcast to a wrong sum."""
        return self._one_each(self.value(teacher_logp, student_logp), student_logp)

    def score(self, teacher: Distribution, student: Distribution) -> tuple[Tensor, Tensor]:
        """Value [...] and derivative g = dD/d(student_logp) [..., V], both detached. Raises UserError as a call does.

        With logits z and q = softmax(z), the derivative in the logits is g - q * g.sum(-1).
        """
        if self.closed_form is not None:
            with torch.no_grad():
                value, gradient = self.closed_form(teacher, student)
            return self._one_each(value, student.logp), gradient
        with torch.enable_grad():
            student_logp = student.logp.detach().requires_grad_()
            value = self(teacher.logp.detach(), student_logp)
            (gradient,) = torch.autograd.grad(value.sum(), student_logp)
        return value.detach(), gradient

    def _one_each(self, value: Tensor, logp: Tensor) -> Tensor:
        if value.shape != logp.shape[:-1]:
            raise UserError(
                f"divergence {self} gave values of shape {tuple(value.shape)} for log-probabilities of shape "
                f"{tuple(logp.shape)}; it must give one for each distribution, shape {tuple(logp.shape[:-1])}: sum over "
                "the last dimension only, without keepdim"
            )
        return value


# --- values -----------------------------------------------------------------------------------------------------------


def _kl(p_logp: Tensor, q_logp: Tensor) -> Tensor:
    p = p_logp.exp()
    # Masked before the product: afterwards, autograd would multiply 0 by inf.
    return (p * (p_logp - q_logp).masked_fill(p == 0, 0.0)).sum(-1)


def log_mixture(teacher_logp: Tensor, student_logp: Tensor, teacher_weight: float) -> Tensor:
    """Log of wP + (1-w)Q, [..., V]; in log space, because the sum of two tiny probabilities may round to 0."""
    teacher_part = teacher_logp + math.log(teacher_weight)
    student_part = student_logp + math.log1p(-teacher_weight)
    if not (teacher_part.requires_grad or student_part.requires_grad):
        return torch.logaddexp(teacher_part, student_part)
    # The derivative of logaddexp is NaN where both arguments are -inf; those entries are constants.
    neither = torch.isneginf(teacher_part) & torch.isneginf(student_part)
    mixed = torch.logaddexp(teacher_part.masked_fill(neither, 0.0), student_part.masked_fill(neither, 0.0))
    return mixed.masked_fill(neither, -math.inf)


def forward_kl(teacher_logp: Tensor, student_logp: Tensor) -> Tensor:
    """KL(P||Q), in nats: covers the teacher's modes. [..., V], [..., V] -> [...]."""
    return _kl(teacher_logp, student_logp)


def reverse_kl(teacher_logp: Tensor, student_logp: Tensor) -> Tensor:
    """KL(Q||P), in nats: seeks the teacher's modes. [..., V], [..., V] -> [...]."""
    return _kl(student_logp, teacher_logp)


def jsd(teacher_logp: Tensor, student_logp: Tensor, beta: float, rescale: bool = False) -> Tensor:
    """Generalised Jensen-Shannon divergence b KL(P||M) + (1-b) KL(Q||M) with M = bP + (1-b)Q, in nats.

    Args:
        teacher_logp, student_logp: [..., V].
        beta: weight of the teacher in the mixture, inside (0, 1).
        rescale: divide by b(1-b), so that the limits are KL(P||Q) at b -> 0 and KL(Q||P) at b -> 1.

    Returns:
        [...].

    Raises UserError when beta is not inside (0, 1). Source: Agarwal et al., ICLR 2024 (arXiv 2306.13649), Eq. 1.
    """
    _check_parameter("jsd", "beta", beta)
    if rescale:
        terms = _rescaled_jsd_terms(Distribution.of(teacher_logp), Distribution.of(student_logp), beta)
        return torch.add(*terms).sum(-1)
    mixture_logp = log_mixture(teacher_logp, student_logp, beta)
    return beta * _kl(teacher_logp, mixture_logp) + (1 - beta) * _kl(student_logp, mixture_logp)


def _rescaled_jsd_terms(teacher: Distribution, student: Distribution, beta: float) -> tuple[Tensor, Tensor]:
    """p log(p/m) / (1-b) and q log(q/m) / b, [..., V] each; up to rounding their sum is >= 0 token by token.

    Dividing by a small b magnifies the rounding of log m. So both logs come from g = log p/q, m/q being 1 + b expm1(g).
    """
    if beta > 0.5:
        return _rescaled_jsd_terms(student, teacher, 1 - beta)[::-1]
    # expm1 overflows at 88 (float32). Past 79, log p/m has reached its limit -log b and q < 1e-34 p leaves nothing of the
    # other term; below -79 it is log m/q that has reached its limit, and p that is as good as 0.
    most = 0.9 * math.log(torch.finfo(student.p.dtype).max)
    gap = (teacher.logp - student.logp).clamp(-most, most)
    if bool(gap.sum().isnan()):  # rare, see `expect`, and mostly inf - inf
        gap = gap.masked_fill((teacher.p == 0) & (student.p == 0), 0.0)
    log_mq = torch.log1p(torch.expm1(gap) * beta)
    return (gap - log_mq) * teacher.p / (1 - beta), log_mq * student.p / -beta


def total_variation(teacher_logp: Tensor, student_logp: Tensor) -> Tensor:
    """Total variation distance, half the L1 distance, in [0, 1]. [..., V], [..., V] -> [...]."""
    return 0.5 * (teacher_logp.exp() - student_logp.exp()).abs().sum(-1)


def skew_forward_kl(teacher_logp: Tensor, student_logp: Tensor, alpha: float = 0.1) -> Tensor:
    """KL(P || aP + (1-a)Q), in nats; finite for every pair. [..., V], [..., V] -> [...].

    Raises UserError when alpha is not inside (0, 1). Source: Ko et al., DistiLLM (arXiv 2402.03898).
    """
    _check_parameter("skew_forward_kl", "alpha", alpha)
    return _kl(teacher_logp, log_mixture(teacher_logp, student_logp, alpha))


def skew_reverse_kl(teacher_logp: Tensor, student_logp: Tensor, alpha: float = 0.1) -> Tensor:
    """KL(Q || (1-a)P + aQ), in nats; finite for every pair. [..., V], [..., V] -> [...].

    Raises UserError when alpha is not inside (0, 1). Source: Ko et al., DistiLLM (arXiv 2402.03898).
    """
    _check_parameter("skew_reverse_kl", "alpha", alpha)
    return _kl(student_logp, log_mixture(teacher_logp, student_logp, 1 - alpha))


def adaptive_kl(teacher_logp: Tensor, student_logp: Tensor, head_mass: float = 0.5) -> Tensor:
    """h KL(P||Q) + (1-h) KL(Q||P), in nats, with h the share of the head in |P - Q|. [..., V], [..., V] -> [...].

    The head are the teacher's likeliest tokens, one at least and of `head_mass` in all at most. Gradients take h for a
    constant, as the paper does: they are not those of the value.

    Raises UserError when head_mass is not inside (0, 1). Source: Wu et al., AKL (arXiv 2404.02657).
    """
    _check_parameter("adaptive_kl", "head_mass", head_mass)
    head = _head_share(teacher_logp.exp(), student_logp.detach().exp(), head_mass)
    forward, reverse = forward_kl(teacher_logp, student_logp), reverse_kl(teacher_logp, student_logp)
    return head * forward.masked_fill(head == 0, 0.0) + (1 - head) * reverse.masked_fill(head == 1, 0.0)


def _head_share(p: Tensor, q: Tensor, head_mass: float) -> Tensor:
    """Of the distance between P and Q, the share on P's head, [...]; 0 where they are equal."""
    ordered, order = p.sort(dim=-1, descending=True, stable=True)
    in_tail = ordered.cumsum(-1) > head_mass
    in_tail[..., 0] = False
    gap = (p - q).abs_().gather(-1, order)
    head, tail = gap.masked_fill(in_tail, 0.0).sum(-1), gap.masked_fill(~in_tail, 0.0).sum(-1)
    return head / (head + tail).masked_fill(head + tail == 0, 1.0)


# --- closed forms: value and dD/d(student_logp) -----------------------------------------------------------------------


def expect(p: Tensor, x: Tensor) -> Tensor:
    """The sum of p * x over the last dimension, where 0 times anything is 0."""
    total = torch.linalg.vecdot(p, x)
    # An infinity or NaN is rare, and mostly a 0 * inf: looking for it here spares every other call a masking pass.
    if not bool(total.isfinite().all()):
        total = torch.linalg.vecdot(p, x.masked_fill(p == 0, 0.0))
    return total


def expect_(p: Tensor, x: Tensor) -> Tensor:
    """As `expect`, and overwrites `x` with the products p * x."""
    total = x.mul_(p).sum(-1)
    if not bool(total.isfinite().all()):
        total = x.masked_fill_(p == 0, 0.0).sum(-1)
    return total


def _log_mixture(teacher: Distribution, student: Distribution, teacher_weight: float) -> Tensor:
    """Log of m = wP + (1-w)Q from the probabilities: one logarithm, where `log_mixture` takes an exponential more.

    Where both probabilities underflow, the smallest normal number stands for m: such an entry contributes less than
    1e-35 to any sum (float32), but log 0 would turn it into 0 * inf.
    """
    mixture = torch.lerp(student.p, teacher.p, teacher_weight)
    return mixture.add_(torch.finfo(mixture.dtype).tiny).log_()


def _forward_kl_score(teacher: Distribution, student: Distribution) -> tuple[Tensor, Tensor]:
    return expect(teacher.p, teacher.logp - student.logp), -teacher.p


def _reverse_kl_score(teacher: Distribution, student: Distribution) -> tuple[Tensor, Tensor]:
    log_ratio = student.logp - teacher.logp
    value = expect_(student.p, log_ratio)
    return value, log_ratio.add_(student.p)  # q (log q/p + 1)


def _jsd_score(teacher: Distribution, student: Distribution, *, beta: float) -> tuple[Tensor, Tensor]:
    mixture_logp = _log_mixture(teacher, student, beta)
    teacher_value = expect(teacher.p, teacher.logp - mixture_logp)
    gradient = torch.sub(student.logp, mixture_logp, out=mixture_logp)
    value = beta * teacher_value + (1 - beta) * expect_(student.p, gradient)
    # The derivatives through M cancel: what is left is (1-b) q log q/m.
    return value, gradient.mul_(1 - beta)


def _rescaled_jsd_score(teacher: Distribution, student: Distribution, *, beta: float) -> tuple[Tensor, Tensor]:
    from_teacher, from_student = _rescaled_jsd_terms(teacher, student, beta)
    return from_teacher.add_(from_student).sum(-1), from_student  # the derivative as in `_jsd_score`


def _total_variation_score(teacher: Distribution, student: Distribution) -> tuple[Tensor, Tensor]:
    difference = student.p - teacher.p
    value = 0.5 * difference.abs().sum(-1)
    return value, difference.sign_().mul_(student.p).mul_(0.5)


def _skew_forward_kl_score(teacher: Distribution, student: Distribution, *, alpha: float) -> tuple[Tensor, Tensor]:
    mixture_logp = _log_mixture(teacher, student, alpha)
    value = expect(teacher.p, teacher.logp - mixture_logp)
    gradient = torch.sub(student.logp, mixture_logp, out=mixture_logp).exp_()
    expect_(teacher.p, gradient)
    return value, gradient.mul_(alpha - 1)  # -(1-a) p q/m


def _skew_reverse_kl_score(teacher: Distribution, student: Distribution, *, alpha: float) -> tuple[Tensor, Tensor]:
    mixture_logp = _log_mixture(teacher, student, 1 - alpha)
    log_ratio = torch.sub(student.logp, mixture_logp, out=mixture_logp)
    gradient = log_ratio.exp().mul_(-alpha).add_(1.0).add_(log_ratio)
    expect_(student.p, gradient)  # q (log q/m + 1 - a q/m)
    return expect_(student.p, log_ratio), gradient


def _adaptive_kl_score(teacher: Distribution, student: Distribution, *, head_mass: float) -> tuple[Tensor, Tensor]:
    head = _head_share(teacher.p, student.p, head_mass)
    value, gradient = _reverse_kl_score(teacher, student)
    value = (1 - head) * value.masked_fill_(head == 1, 0.0)
    gradient = gradient.masked_fill_((head == 1)[..., None], 0.0).mul_(1 - head[..., None])
    forward, forward_gradient = _forward_kl_score(teacher, student)
    return value + head * forward.masked_fill_(head == 0, 0.0), gradient.addcmul_(forward_gradient, head[..., None])


# --- spellings --------------------------------------------------------------------------------------------------------


_INSTEAD = {  # of a parameter at the end of its range
    "jsd": "forward_kl (the limit beta -> 0, up to scale) or reverse_kl (the limit beta -> 1)",
    "skew_forward_kl": "forward_kl (alpha = 0)",
    "skew_reverse_kl": "reverse_kl (alpha = 0)",
    "adaptive_kl": "forward_kl (all tokens are the head)",
}


def _check_parameter(family: str, name: str, value: float) -> None:
    if not 0 < value < 1:
        raise UserError(
            f"{family}: {name} = {value} is outside (0, 1). Use {name} inside (0, 1), or divergence {_INSTEAD[family]}."
        )


def _build_jsd(beta: float, rescale: bool = False) -> Divergence:
    _check_parameter("jsd", "beta", beta)
    name, score = (f"jsd({beta}, rescale)", _rescaled_jsd_score) if rescale else (f"jsd({beta})", _jsd_score)
    return Divergence(name, partial(jsd, beta=beta, rescale=rescale), partial(score, beta=beta))


class _Family(NamedTuple):
    """How a name becomes a divergence: its builder, what to show users, which arguments it takes."""

    build: Callable[..., Divergence]
    usage: str
    numbers: range = range(1)
    flags: tuple[str, ...] = ()


def _plain(divergence: Divergence) -> _Family:
    return _Family(lambda: divergence, divergence.name)


def _of_parameter(
    value: Callable[..., Tensor], score: Callable[..., tuple[Tensor, Tensor]], parameter: str, default: float
) -> _Family:
    family = value.__name__

    def build(number: float = default) -> Divergence:
        _check_parameter(family, parameter, number)
        given = {parameter: number}
        return Divergence(f"{family}({number})", partial(value, **given), partial(score, **given))

    return _Family(build, f"{family}({default})", range(2))


_FAMILIES: dict[str, _Family] = {
    "forward_kl": _plain(Divergence("forward_kl", forward_kl, _forward_kl_score)),
    "reverse_kl": _plain(Divergence("reverse_kl", reverse_kl, _reverse_kl_score)),
    "jsd": _Family(_build_jsd, "jsd(0.5) or jsd(0.5, rescale)", range(1, 2), ("rescale",)),
    "total_variation": _plain(Divergence("total_variation", total_variation, _total_variation_score)),
    "skew_forward_kl": _of_parameter(skew_forward_kl, _skew_forward_kl_score, "alpha", 0.1),
    "skew_reverse_kl": _of_parameter(skew_reverse_kl, _skew_reverse_kl_score, "alpha", 0.1),
    "adaptive_kl": _of_parameter(adaptive_kl, _adaptive_kl_score, "head_mass", 0.5),
}
_SPELLING = re.compile(r"\s*(\w+)\s*(?:\(([^()]*)\))?\s*")


def register(name: str, fn: DivergenceFn) -> Divergence:
    """Makes `fn` [..., V], [..., V] -> [...] available to `parse` under `name`; its derivative comes from autograd.

    Raises UserError when the name is taken or not an identifier; of another shape, `fn` does where it is evaluated.
    """
    if not name.isidentifier() or name in _FAMILIES:
        raise UserError(f"divergence name {name!r} is taken or not an identifier; register it under another name")
    divergence = Divergence(name, fn)
    _FAMILIES[name] = _plain(divergence)
    return divergence


def parse(spelling: str | Divergence) -> Divergence:
    """The divergence of a spelling: "forward_kl", "jsd(0.9)", "jsd(0.9, rescale)", "skew_reverse_kl(0.1)", ...

    `str(parse(s))` spells the same one. Raises UserError for an unknown name, wrong arguments, or one out of range.
    """
    if isinstance(spelling, Divergence):
        return spelling
    match = _SPELLING.fullmatch(spelling)
    name = match[1] if match else spelling
    if match is None or name not in _FAMILIES:
        usage = {known: family.usage for known, family in _FAMILIES.items()}
        raise UserError(f"unknown divergence {spelling!r}; {nearest(name, _FAMILIES, usage)}")
    family = _FAMILIES[name]
    words = [word.strip() for word in match[2].split(",")] if match[2] else []
    flags = [word for word in words if word in family.flags]
    try:
        numbers = [float(word) for word in words if word not in family.flags]
    except ValueError as error:
        raise UserError(f"divergence {spelling!r}: {error}; write it as {family.usage}") from error
    if len(numbers) not in family.numbers or len(flags) > len(set(flags)):
        raise UserError(f"divergence {spelling!r} has the wrong arguments; write it as {family.usage}")
    return family.build(*numbers, **dict.fromkeys(flags, True))
