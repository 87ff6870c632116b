"""Optimisers from libraries, learning-rate schedules, float32 master weights."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from tutelage.errors import UserError
from tutelage.train.config import TrainConfig


class Optimizer:
    """The update: gradients of all micro-batches are added up in float32, clipped, and applied to float32 weights.

    bfloat16 parameters get float32 master weights. Within `with optimizer:` a master's gradient takes each micro-batch's
    bfloat16 gradient as soon as it is complete; the parameter is rounded from its master after the step. Behind the
    context, however it ends, the module is again its owner's alone: no hook is left on it.

    Args:
        module: whose trainable parameters are updated.
        config: optimiser, rates, schedule, clipping.
    """

    def __init__(self, module: nn.Module, config: TrainConfig) -> None:
        self.config = config
        self.parameters = {name: p for name, p in module.named_parameters() if p.requires_grad}
        self.masters = {name: _master(p) for name, p in self.parameters.items()}
        self._handles: list[RemovableHandle] = []
        embeddings = {id(m.weight) for m in module.modules() if isinstance(m, nn.Embedding)}
        matrices = {
            name
            for name, p in self.parameters.items()
            if p.ndim == 2 and id(p) not in embeddings and not name.endswith("lm_head.weight")
        }
        self.optimizers = self._build(matrices if config.optimizer == "muon" else set())

    def __enter__(self) -> Self:
        for name, parameter in self.parameters.items():
            master = self.masters[name]
            parameter.grad = master.grad = None  # of its owner's last backward pass: no part of the first step
            if master is not parameter:
                self._handles.append(parameter.register_post_accumulate_grad_hook(_hand_over_to(master)))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def step(self, step: int, loss: Tensor | None = None) -> tuple[Tensor, float]:
        """Clips, updates and clears the gradients; updates nothing when a gradient or the loss is not finite.

        Args:
            step: from 0; decides the learning rate.
            loss: the step's loss, 0-d. It can be infinite where its gradient is not.

        Returns:
            The gradient norm before clipping (a 0-d tensor; NaN or infinite when a gradient is), and the learning rate.

        Raises:
            RuntimeError: there are master weights, but no context in which gradients could have reached them.
        """
        if not self._handles and any(self.masters[name] is not p for name, p in self.parameters.items()):
            raise RuntimeError("gradients reach float32 master weights only inside `with optimizer:`")
        gradients = [m.grad for m in self.masters.values() if m.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        share = schedule(step, self.config)
        if not torch.isfinite(norm if loss is None else norm + loss):
            return norm, share * self.config.learning_rate
        if self.config.clip_norm is not None:
            torch.nn.utils.clip_grads_with_norm_(list(self.masters.values()), self.config.clip_norm, norm)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["peak_lr"] * share
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                if self.masters[name] is not parameter:
                    parameter.copy_(self.masters[name])
        return norm, share * self.config.learning_rate

    def state_dict(self) -> dict[str, Any]:
        """Weights in float32 by name, and the optimisers' states."""
        return {
            "weights": {name: m.detach() for name, m in self.masters.items()},
            "optimizers": [o.state_dict() for o in self.optimizers],
        }

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores weights and optimisers.

        Raises:
            UserError: the weights are another model's.
        """
        saved_shapes = {name: tuple(weight.shape) for name, weight in state["weights"].items()}
        shapes = {name: tuple(master.shape) for name, master in self.masters.items()}
        if saved_shapes != shapes:
            differing = sorted(n for n in saved_shapes.keys() | shapes.keys() if saved_shapes.get(n) != shapes.get(n))
            raise UserError(
                f"the checkpoint is of another model: {differing[0]} has shape {saved_shapes.get(differing[0])} there and "
                f"{shapes.get(differing[0])} in the student; give the student the run began with, or start over (overwrite)"
            )
        for name, parameter in self.parameters.items():
            self.masters[name].copy_(state["weights"][name])
            parameter.copy_(self.masters[name])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)

    def _build(self, matrices: set[str]) -> list[torch.optim.Optimizer]:
        config = self.config
        rest = [m for name, m in self.masters.items() if name not in matrices]
        built: list[torch.optim.Optimizer] = []
        if matrices:
            chosen = [self.masters[name] for name in self.masters if name in matrices]
            group = {"params": chosen, "peak_lr": config.matrix_learning_rate}
            built.append(torch.optim.Muon([group], lr=config.matrix_learning_rate, weight_decay=config.weight_decay))
        groups = [{"params": rest, "peak_lr": config.learning_rate}]
        if config.optimizer == "adafactor":
            built.append(torch.optim.Adafactor(groups, lr=config.learning_rate, weight_decay=config.weight_decay))
        elif rest:
            built.append(
                torch.optim.AdamW(
                    groups, lr=config.learning_rate, betas=config.betas, weight_decay=config.weight_decay, fused=True
                )
            )
        return built


def _master(parameter: nn.Parameter) -> Tensor:
    """The weight that is optimised: the parameter itself, or a float32 copy of one in half precision."""
    if parameter.dtype not in (torch.bfloat16, torch.float16):
        return parameter
    return parameter.detach().float().requires_grad_(True)


def _hand_over_to(master: Tensor) -> Callable[[Tensor], None]:
    """A hook that adds a parameter's gradient to its master's, in float32, and frees it."""

    def hand_over(parameter: Tensor) -> None:
        if parameter.grad is not None:
            master.grad = parameter.grad.float() if master.grad is None else master.grad.add_(parameter.grad)
            parameter.grad = None

    return hand_over


def schedule(step: int, config: TrainConfig) -> float:
    """The learning rate of a step as a share of its peak: linear warm-up, then cosine, linear or constant."""
    if step < config.warmup_steps:
        return (step + 1) / config.warmup_steps
    if config.schedule == "constant":
        return 1.0
    done = (step - config.warmup_steps) / max(1, config.steps - config.warmup_steps)
    left = 1.0 - done if config.schedule == "linear" else 0.5 * (1.0 + math.cos(math.pi * done))
    return config.min_lr_share + (1.0 - config.min_lr_share) * left


def trainable_bytes(parameters: Iterable[Tensor]) -> int:
    """Bytes of a checkpoint of these parameters: float32 weights and at most two float32 moments each."""
    return 12 * sum(p.numel() for p in parameters if p.requires_grad)
