"""A student out of the teacher's own layers: evenly spaced, the first and the last kept."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from tutelage.errors import UserError
from tutelage.models.configs import set_dropout

_DEPTHS = ("num_hidden_layers", "n_layer", "num_layers", "num_decoder_layers", "encoder_layers", "decoder_layers")


def kept_layers(depth: int, keep: int) -> list[int]:
    """Which of `depth` layers a thinned model of `keep` layers takes: kept_layers(30, 4) == [0, 10, 19, 29]."""
    if not 1 <= keep <= depth:
        raise UserError(f"student_model.layers={keep}, but the teacher has {depth} layers; choose 1 to {depth}")
    if keep == 1:
        return [0]
    return [round(i * (depth - 1) / (keep - 1)) for i in range(keep)]


def thin(model: Any, keep: int, dropout: float | None = None, dtype: torch.dtype = torch.float32) -> Any:
    """A new model with `keep` of the layers of `model` (of each stack, for encoder-decoder models).

    Args:
        model: a PreTrainedModel, not quantised.
        keep: layers kept.
        dropout: replaces every dropout rate of the configuration.
        dtype: of the weights.

    Returns:
        A PreTrainedModel of the same class with copied weights, on the CPU.

    Raises:
        UserError: there are not that many layers, or none are found.
    """
    stacks = _stacks(model)
    if not stacks:
        raise UserError(
            f"cannot find the layers of {type(model).__name__}; give a student folder instead of student_model.layers"
        )
    chosen = {name: kept_layers(depth, keep) for name, depth in stacks.items()}
    depth = next(iter(stacks.values()))
    config = _thinned_config(model.config, chosen[next(iter(stacks))], depth, keep)
    if dropout is not None:
        set_dropout(config, dropout)
    with _made_in(dtype):
        student = type(model)(config)
    _untie_as(model, student)
    state = {}
    for key, value in model.state_dict().items():
        renamed = _rename(key, chosen)
        if renamed is not None:
            state[renamed] = value.detach().to("cpu", dtype) if value.is_floating_point() else value.detach().cpu()
    student.load_state_dict(state)
    student.generation_config = copy.deepcopy(model.generation_config)
    return student


@contextmanager
def _made_in(dtype: torch.dtype) -> Iterator[None]:
    """Has models made as transformers makes those that it loads: each buffer that no checkpoint holds in the type of its own.

    A cast afterwards would take all of them: rounded frequencies of rotary positions make another model, up to the first time it
    is saved and loaded.
    """
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def cast(module: nn.Module, dtype: torch.dtype) -> None:
    """Gives everything that a checkpoint would hold this floating-point type; other buffers keep theirs, as in `thin`."""
    kept = set(module.state_dict())
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        if name in kept and tensor.is_floating_point():
            tensor.data = tensor.data.to(dtype)


def _stacks(model: nn.Module) -> dict[str, int]:
    """Names and depths of the outermost lists of layers."""
    found: dict[str, int] = {}
    for name, module in model.named_modules():
        nested = any(name.startswith(f"{outer}.") for outer in found)
        if isinstance(module, nn.ModuleList) and len(module) > 0 and not nested:
            found[name] = len(module)
    return found


def _thinned_config(config: Any, kept: list[int], depth: int, keep: int) -> Any:
    config = copy.deepcopy(config)
    fields = config.to_dict()
    for name in _DEPTHS:
        if fields.get(name) is not None:
            setattr(config, name, keep)
    if isinstance(fields.get("layer_types"), list) and len(fields["layer_types"]) == depth:
        config.layer_types = [fields["layer_types"][i] for i in kept]
    return config


def _untie_as(model: Any, student: Any) -> None:
    """Gives `student` its own copy of every weight that its class shares and `model` does not.

    A checkpoint that holds both weights overrules the class: T5 v1.1's head is not its embedding.
    """
    for target, source in list(student.all_tied_weights_keys.items()):
        if model.get_parameter(target) is not model.get_parameter(source):
            owner, _, name = target.rpartition(".")
            copied = nn.Parameter(student.get_parameter(target).detach().clone())
            setattr(student.get_submodule(owner), name, copied)
            del student.all_tied_weights_keys[target]


def _rename(key: str, chosen: dict[str, list[int]]) -> str | None:
    """The key in the thinned model, or None when its layer is left out."""
    for name, kept in chosen.items():
        prefix = f"{name}."
        if key.startswith(prefix):
            index, rest = key[len(prefix) :].split(".", 1)
            return f"{prefix}{kept.index(int(index))}.{rest}" if int(index) in kept else None
    return key
