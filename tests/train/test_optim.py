from __future__ import annotations

import math
from contextlib import suppress
from typing import Any

import pytest
import torch
from torch import nn

from tests.conftest import build_module
from tutelage.errors import UserError
from tutelage.train.config import TrainConfig
from tutelage.train.optim import Optimizer, schedule, trainable_bytes


def settings(**changes: Any) -> TrainConfig:
    base: dict[str, Any] = {"steps": 10, "schedule": "constant", "clip_norm": None, "learning_rate": 0.1}
    return TrainConfig(**{**base, **changes})


def scalar_module(*values: float, dtype: torch.dtype = torch.float32) -> nn.Module:
    module = nn.Module()
    module.weight = nn.Parameter(torch.tensor(values, dtype=dtype))
    return module


# Four steps of warm-up and six of decay, worked out by hand.
COSINE = [0.5 * (1 + math.cos(math.pi * k / 6)) for k in range(6)]
SCHEDULES: list[tuple[dict[str, Any], list[float]]] = [
    ({"schedule": "constant"}, [1.0] * 10),
    ({"schedule": "constant", "warmup_steps": 4}, [0.25, 0.5, 0.75, 1.0] + [1.0] * 6),
    ({"schedule": "linear", "warmup_steps": 5}, [0.2, 0.4, 0.6, 0.8, 1.0, 1.0, 0.8, 0.6, 0.4, 0.2]),
    ({"schedule": "linear", "min_lr_share": 0.5}, [1.0, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7, 0.65, 0.6, 0.55]),
    ({"schedule": "cosine", "warmup_steps": 4}, [0.25, 0.5, 0.75, 1.0, *COSINE]),
    ({"schedule": "cosine", "warmup_steps": 4, "min_lr_share": 0.2}, [0.25, 0.5, 0.75, 1.0, *(0.2 + 0.8 * c for c in COSINE)]),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "shares"), SCHEDULES)
def test_schedules(changes: dict[str, Any], shares: list[float]) -> None:
    assert [schedule(step, settings(**changes)) for step in range(10)] == pytest.approx(shares)


def test_adamw_is_torchs_with_the_schedules_rate() -> None:
    config = settings(schedule="linear", warmup_steps=2, betas=(0.8, 0.9), weight_decay=0.1)
    module, twin = scalar_module(1.0, -2.0), scalar_module(1.0, -2.0)
    optimizer = Optimizer(module, config)
    reference = torch.optim.AdamW(twin.parameters(), lr=1.0, betas=(0.8, 0.9), weight_decay=0.1)
    for step in range(5):
        for each in (module, twin):
            each.weight.grad = torch.tensor([0.3, -0.1]) * (step + 1)
        _, rate = optimizer.step(step)
        reference.param_groups[0]["lr"] = 0.1 * schedule(step, config)
        reference.step()
        assert rate == 0.1 * schedule(step, config)
    torch.testing.assert_close(module.weight, twin.weight, rtol=1e-6, atol=1e-7)
    assert module.weight.grad is None


@pytest.mark.parametrize("largest", [0.5, 100.0])
def test_clipping_is_torchs(largest: float) -> None:
    torch.manual_seed(0)
    module, twin = nn.Linear(3, 2), nn.Linear(3, 2)
    gradients = [torch.randn_like(p) for p in module.parameters()]
    seen = {}
    optimizer = Optimizer(module, settings(clip_norm=largest))
    optimizer.optimizers[0].register_step_pre_hook(
        lambda *_: seen.update({n: p.grad.clone() for n, p in module.named_parameters()})
    )
    for p, q, gradient in zip(module.parameters(), twin.parameters(), gradients, strict=True):
        p.grad, q.grad = gradient.clone(), gradient.clone()
    norm, _ = optimizer.step(0)
    expected = torch.nn.utils.clip_grad_norm_(twin.parameters(), largest)
    assert norm.item() == pytest.approx(math.sqrt(sum(float((g**2).sum()) for g in gradients)))
    assert norm.item() == expected.item()
    for name, q in twin.named_parameters():
        assert torch.equal(seen[name], q.grad)


def test_master_weights_keep_updates_too_small_for_bfloat16() -> None:
    """Between 1 and 2 bfloat16 has steps of 2^-7: sixteen updates of 2^-10 vanish one by one, and add up to 2^-6."""
    module = scalar_module(1.0, dtype=torch.bfloat16)
    with Optimizer(module, settings(steps=20, learning_rate=2**-10)) as optimizer:
        for step in range(16):
            module.weight.sum().neg().backward()  # AdamW turns a constant gradient into steps of the learning rate
            assert module.weight.grad is None  # taken over by the master as soon as it is complete
            optimizer.step(step)
            if step == 0:
                assert module.weight.item() == 1.0
    assert module.weight.dtype == torch.bfloat16
    assert module.weight.item() == 1.0 + 2**-6
    assert optimizer.masters["weight"].item() == pytest.approx(1 + 2**-6, abs=1e-6)


def test_micro_batches_add_up_in_float32() -> None:
    """In bfloat16, 1 + 2^-9 is 1: sixteen small gradients behind a large one would be lost."""
    module = scalar_module(0.0, dtype=torch.bfloat16)
    with Optimizer(module, settings()) as optimizer:
        for gradient in (1.0, *[2**-9] * 16):
            (module.weight * gradient).sum().backward()
        norm, _ = optimizer.step(0)
    assert norm.item() == 1.0 + 2**-5


def test_one_optimizer_after_the_other_trains_the_same_bfloat16_weights() -> None:
    """At a rate of 2^-4 the first step of AdamW is one of 2^-4, in the direction of the gradient's sign."""
    module = scalar_module(1.0, dtype=torch.bfloat16)
    for moved in (1.0 + 2**-4, 1.0 + 2**-3):
        with Optimizer(module, settings(learning_rate=2**-4)) as optimizer:
            module.weight.sum().neg().backward()
            norm, _ = optimizer.step(0)
        assert norm.item() == 1.0
        assert module.weight.item() == moved


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradients_are_the_owners_before_and_after_training(dtype: torch.dtype) -> None:
    module = scalar_module(1.0, dtype=dtype)
    module.weight.grad = torch.tensor([100.0], dtype=dtype)  # a loop of the owner's, before
    optimizer = Optimizer(module, settings())
    with suppress(KeyboardInterrupt), optimizer:
        (3 * module.weight).sum().backward()
        norm, _ = optimizer.step(0)
        assert norm.item() == 3.0
        raise KeyboardInterrupt
    (5 * module.weight).sum().backward()  # another, behind a run that was interrupted
    assert module.weight.grad.tolist() == [5.0]
    assert optimizer.masters["weight"] is module.weight or optimizer.masters["weight"].grad is None


def test_no_step_of_master_weights_without_their_gradients() -> None:
    module = scalar_module(1.0, dtype=torch.bfloat16)
    optimizer = Optimizer(module, settings())
    module.weight.sum().backward()
    with pytest.raises(RuntimeError, match="only inside `with optimizer:`"):
        optimizer.step(0)


def test_float32_and_float64_weights_are_optimised_in_place() -> None:
    for dtype in (torch.float32, torch.float64):
        module = scalar_module(1.0, dtype=dtype)
        assert Optimizer(module, settings()).masters["weight"] is module.weight


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_gradient_that_is_not_finite_updates_nothing(bad: float, dtype: torch.dtype) -> None:
    module = scalar_module(1.0, 2.0, dtype=dtype)
    with Optimizer(module, settings()) as optimizer:
        (module.weight * torch.tensor([1.0, bad], dtype=dtype)).sum().backward()
        norm, _ = optimizer.step(0)
    assert not math.isfinite(norm)
    assert module.weight.tolist() == [1.0, 2.0]
    assert not optimizer.optimizers[0].state


def test_a_loss_that_is_not_finite_updates_nothing() -> None:
    module = scalar_module(1.0)
    optimizer = Optimizer(module, settings())
    module.weight.grad = torch.tensor([1.0])
    norm, _ = optimizer.step(0, torch.tensor(math.inf))
    assert norm.item() == 1.0
    assert module.weight.item() == 1.0


def test_muon_gets_the_matrices_of_the_layers_and_adamw_the_rest() -> None:
    module = build_module("llama", dtype=torch.float32)
    optimizer = Optimizer(module, settings(optimizer="muon", matrix_learning_rate=0.02))
    muon, adamw = optimizer.optimizers
    assert (type(muon), type(adamw)) == (torch.optim.Muon, torch.optim.AdamW)
    names = {id(p): name for name, p in module.named_parameters()}
    given = {names[id(p)].rpartition(".layers.")[2] for p in muon.param_groups[0]["params"]}
    kinds = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj")
    kinds += ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")
    assert given == {f"{layer}.{kind}.weight" for layer in (0, 1) for kind in kinds}
    rest = {names[id(p)] for p in adamw.param_groups[0]["params"]}
    assert {"model.embed_tokens.weight", "lm_head.weight", "model.norm.weight"} <= rest
    assert len(rest) + len(muon.param_groups[0]["params"]) == len(names)
    assert (muon.param_groups[0]["peak_lr"], adamw.param_groups[0]["peak_lr"]) == (0.02, 0.1)


@pytest.mark.parametrize("name", ["adamw", "adafactor", "muon"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_restored_optimizer_goes_on_as_if_nothing_had_happened(name: str, dtype: torch.dtype) -> None:
    def train(optimizer: Optimizer, module: nn.Module, steps: range) -> None:
        with optimizer:
            for step in steps:
                inputs = torch.randn(4, 6, generator=torch.Generator().manual_seed(step)).to(dtype)
                (module(inputs) ** 2).sum().backward()
                optimizer.step(step)

    config = settings(optimizer=name, schedule="cosine", clip_norm=1.0)
    torch.manual_seed(0)
    whole, first, second = (nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 2)).to(dtype) for _ in range(3))
    first.load_state_dict(whole.state_dict())
    straight, before, after = (Optimizer(m, config) for m in (whole, first, second))
    if name == "adafactor":
        assert isinstance(straight.optimizers[0], torch.optim.Adafactor)
    train(straight, whole, range(6))
    train(before, first, range(3))
    after.load_state_dict(before.state_dict())
    train(after, second, range(3, 6))
    for one, other in zip(whole.parameters(), second.parameters(), strict=True):
        assert torch.equal(one, other)
    assert not torch.equal(first[0].weight, second[0].weight)


def test_weights_of_another_model_are_refused() -> None:
    optimizer = Optimizer(nn.Linear(3, 2), settings())
    with pytest.raises(UserError, match=r"another model: bias has shape \(5,\) there and \(2,\) in the student"):
        optimizer.load_state_dict(Optimizer(nn.Linear(3, 5), settings()).state_dict())


def test_only_trainable_parameters_are_optimised_and_counted() -> None:
    module = nn.Linear(3, 2)
    module.bias.requires_grad_(False)
    assert list(Optimizer(module, settings()).masters) == ["weight"]
    assert trainable_bytes(module.parameters()) == 12 * 6
