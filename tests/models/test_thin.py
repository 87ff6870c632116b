"""The teacher's own layers: which are kept, what is copied, and that the configuration follows."""

import pytest
import torch

from tests.conftest import FAMILIES, build_module
from tutelage.errors import UserError
from tutelage.models.thin import cast, kept_layers, thin

STACKS = {
    "llama": ("model.layers",),
    "qwen2": ("model.layers",),
    "gpt2": ("transformer.h",),
    "gemma2": ("model.layers",),
    "t5": ("encoder.block", "decoder.block"),
    "t5_v1_1": ("encoder.block", "decoder.block"),
    "bart": ("model.encoder.layers", "model.decoder.layers"),
}
IDS = torch.tensor([[5, 17, 40, 9, 33]])


@pytest.mark.parametrize(
    ("depth", "keep", "kept"),
    [(30, 4, [0, 10, 19, 29]), (5, 5, [0, 1, 2, 3, 4]), (12, 2, [0, 11]), (12, 1, [0]), (1, 1, [0])],
)
def test_kept_layers(depth, keep, kept):
    assert kept_layers(depth, keep) == kept


@pytest.mark.parametrize("keep", [0, 6])
def test_impossible_depth(keep):
    with pytest.raises(UserError, match=rf"student_model\.layers={keep}, but the teacher has 5 layers; choose 1 to 5"):
        kept_layers(5, keep)


def cut_by_hand(module, names, kept):
    """The same module with the other layers taken out: what a thinned model must compute."""
    for name in names:
        layers = module.get_submodule(name)
        module.set_submodule(name, torch.nn.ModuleList([layers[i] for i in kept]))
    return module


@pytest.mark.parametrize("family", FAMILIES)
def test_thinned_model_computes_with_the_kept_layers(family):
    module = build_module(family, layers=5, dtype=torch.float32)
    student = thin(module, 3).eval()
    extra = {"decoder_input_ids": IDS.flip(1)} if module.config.is_encoder_decoder else {}
    for name in STACKS[family]:
        assert len(module.get_submodule(name)) == 5
        assert len(student.get_submodule(name)) == 3
        for new, old in enumerate([0, 2, 4]):
            theirs = module.get_submodule(f"{name}.{old}").state_dict()
            ours = student.get_submodule(f"{name}.{new}").state_dict()
            assert ours.keys() == theirs.keys()
            assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    if family != "gemma2":  # there a cut by hand would also have to move the sliding windows
        reference = cut_by_hand(module, STACKS[family], [0, 2, 4])
        with torch.no_grad():
            ours, theirs = (m(input_ids=IDS, **extra, use_cache=False).logits for m in (student, reference))
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_weights_become_float32_copies():
    module = build_module("llama", dtype=torch.bfloat16)
    student = thin(module, 1)
    assert {p.dtype for p in student.parameters()} == {torch.float32}
    assert torch.equal(student.lm_head.weight, module.lm_head.weight.float())
    with torch.no_grad():
        student.lm_head.weight.zero_()
    assert module.lm_head.weight.abs().max() > 0


def test_configuration_follows():
    teacher = build_module("gemma2", layers=5)
    assert teacher.config.layer_types == ["sliding_attention", "full_attention"] * 2 + ["sliding_attention"]
    student = thin(teacher, 2)
    assert (student.config.num_hidden_layers, teacher.config.num_hidden_layers) == (2, 5)
    assert student.config.layer_types == ["sliding_attention", "sliding_attention"]
    assert student.config._attn_implementation == "eager"
    assert student.generation_config.eos_token_id == teacher.generation_config.eos_token_id
    assert student.generation_config is not teacher.generation_config


def test_both_stacks_of_t5_follow():
    config = thin(build_module("t5", layers=4), 2).config
    assert (config.num_layers, config.num_decoder_layers) == (2, 2)


def test_head_of_t5_v1_1_stays_apart_from_the_embedding():
    teacher = build_module("t5_v1_1", dtype=torch.float32)
    student = thin(teacher, 1)
    assert torch.equal(student.lm_head.weight, teacher.lm_head.weight)
    assert torch.equal(student.shared.weight, teacher.shared.weight)
    assert not torch.equal(student.lm_head.weight, student.shared.weight)
    assert student.decoder.embed_tokens.weight is student.shared.weight


def test_tied_heads_stay_tied():
    student = thin(build_module("gpt2"), 1)
    assert student.lm_head.weight is student.transformer.wte.weight


def test_dropout():
    teacher = build_module("gpt2", dropout=0.1)
    assert thin(teacher, 1).config.resid_pdrop == 0.1
    assert thin(teacher, 1, dropout=0.0).transformer.h[0].mlp.dropout.p == 0.0
    assert teacher.config.resid_pdrop == 0.1


def test_a_model_without_layers():
    with pytest.raises(UserError, match="cannot find the layers of Linear"):
        thin(torch.nn.Linear(2, 2), 1)


def test_casting_leaves_computed_buffers_as_they_are_and_ties_tied():
    module = build_module("qwen2", dtype=torch.float32)
    frequencies = module.model.rotary_emb.inv_freq.clone()
    cast(module, torch.bfloat16)
    assert {parameter.dtype for parameter in module.parameters()} == {torch.bfloat16}
    assert module.model.rotary_emb.inv_freq.dtype == torch.float32
    assert torch.equal(module.model.rotary_emb.inv_freq, frequencies)
    assert module.lm_head.weight is module.model.embed_tokens.weight
