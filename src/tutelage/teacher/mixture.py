"""Several teachers as one: the geometric mean of their distributions, exact with a single linear head."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from tutelage.errors import UserError
from tutelage.models.language_model import LanguageModel
from tutelage.teacher.base import TeacherModel
from tutelage.types import LMHead, MicroBatch


class TeacherMixture:
    """The weighted geometric mean of several teachers' distributions, renormalised: a logarithmic opinion pool.

    Its logits are the weighted sum of the teachers' logits, and a weighted sum of linear heads is one linear head over the
    concatenated hidden states (w weights; s, W, b the heads' scales, matrices and biases):

        sum_i w_i s_i (h_i W_i^T + b_i) = [w_1 s_1 h_1, ..., w_n s_n h_n] [W_1, ..., W_n]^T + sum_i w_i s_i b_i

    so that every divergence and every signal is exact. At a temperature it is the mean of the tempered distributions.
    The products w_i s_i h_i have the models' dtype: in bfloat16 each is rounded once more, to 8 significant bits.

    Memory beside the teachers themselves: one concatenated copy of their heads, V x (H_1 + ... + H_n), and hidden states
    of that width, N x (H_1 + ... + H_n), for every micro-batch. Time: a forward pass of every teacher.

    Args:
        models: the teachers, of one family, over the student's vocabulary (`models.vocabulary.agree`); their weights must not
            change any more. Of heads of different height the rows they share are used; the others are padding.
        weights: one a teacher, positive, of sum 1; None: equal.

    Raises:
        UserError: a head has a soft-cap, which is not linear.

    Source: geometric means of an ensemble's predictions as targets, Hinton, Vinyals & Dean 2015 (arXiv 1503.02531), section 1.
    """

    def __init__(self, models: Sequence[LanguageModel], weights: Sequence[float] | None = None) -> None:
        capped = [model.name for model in models if model.head.softcap is not None]
        if capped:
            raise UserError(
                f"other_teachers: {', '.join(capped)} caps its logits (final_logit_softcapping in config.json), and capped logits "
                "cannot be averaged by one linear head; leave this teacher out, or use it alone"
            )
        self.models = tuple(models)
        # A new list is in training mode, and whoever gives modes back would pass that on: teachers mark without dropout.
        self.module: Any = nn.ModuleList(model.module for model in models).eval()
        self.vocab_size = min(model.vocab_size for model in models)
        shares = [1 / len(models)] * len(models) if weights is None else weights
        heads = [model.head.rows(self.vocab_size) for model in models]
        self._factors = [share * head.scale for share, head in zip(shares, heads, strict=True)]
        self._head = _concatenated(heads, self._factors)

    @property
    def head(self) -> LMHead:
        """The heads side by side; weights and scales are in the hidden states and in the bias."""
        return self._head

    def hidden(self, micro: MicroBatch) -> Tensor:
        """The teachers' hidden states at the positions that predict the completion tokens, weighted: [N, H_1 + ... + H_n]."""
        pairs = zip(self.models, self._factors, strict=True)
        return torch.cat([factor * model.hidden(micro) for model, factor in pairs], dim=1)


def mix(models: Sequence[LanguageModel], weights: Sequence[float] | None = None) -> TeacherModel:
    """One teacher out of these: the only one as it is, several as a `TeacherMixture` (args and errors there)."""
    return models[0] if len(models) == 1 else TeacherMixture(models, weights)


@torch.no_grad()
def _concatenated(heads: Sequence[LMHead], factors: Sequence[float]) -> LMHead:
    """`heads` side by side, with the sum of their biases, each times its factor."""
    biases = [factor * head.bias for head, factor in zip(heads, factors, strict=True) if head.bias is not None]
    bias = torch.stack(biases).sum(dim=0) if biases else None
    return LMHead(torch.cat([head.weight for head in heads], dim=1), bias)
