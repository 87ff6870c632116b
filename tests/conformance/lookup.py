"""A language model small enough to enumerate: it looks hidden states up instead of computing them."""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from tutelage.types import LMHead, MicroBatch

State = tuple[int, tuple[int, ...]]
_SCALE = 0.7


def random(*shape: int, seed: int) -> Tensor:
    """Normal numbers in float64."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def states_of(sequences: Iterable[tuple[int, Sequence[int]]]) -> dict[State, int]:
    """A row for every prompt with every prefix that these (prompt, completion) pass."""
    passed = ((x, tuple(y[:n])) for x, y in sequences for n in range(len(y)))
    return {state: row for row, state in enumerate(dict.fromkeys(passed))}


class LookupModel:
    """Has a hidden state of its own for every prompt and prefix; stands where `LanguageModel` does.

    Args:
        states: of `states_of`.
        vocab: tokens.
        seed: of the states and the head.
    """

    is_encoder_decoder, pad_id, device = False, 0, torch.device("cpu")

    def __init__(self, states: dict[State, int], vocab: int, seed: int) -> None:
        self.rows = states
        self.states = torch.nn.Parameter(random(len(states), 4, seed=seed))
        self.weight = torch.nn.Parameter(random(vocab, 4, seed=seed + 1))
        self.module = torch.nn.ParameterList([self.states, self.weight])
        self.leaves = [self.states, self.weight]

    @property
    def head(self) -> LMHead:
        return LMHead(self.weight, scale=_SCALE)

    def hidden(self, micro: MicroBatch) -> Tensor:
        """[N, 4]."""
        return torch.cat([self._passed(r.prompt_id, r.completion_ids) for r in micro.rollouts])

    def logp(self, x: int, y: Sequence[int]) -> Tensor:
        """Log-probabilities [L, V] at the states that `y` passes behind prompt `x`."""
        return (_SCALE * self._passed(x, y) @ self.weight.T).log_softmax(-1)

    def token_logp(self, x: int, y: Sequence[int]) -> Tensor:
        """Log-probabilities [L] of the tokens of `y`."""
        return self.logp(x, y).gather(1, torch.tensor(y)[:, None]).squeeze(1)

    def log_q(self, x: int, y: Sequence[int]) -> Tensor:
        """Log-probability of the sequence."""
        return self.token_logp(x, y).sum()

    def _passed(self, x: int, y: Sequence[int]) -> Tensor:
        return self.states[[self.rows[x, tuple(y[:n])] for n in range(len(y))]]
