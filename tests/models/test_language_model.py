"""Hidden states and head against the model's own logits, special tokens, adapters on the head."""

import peft
import pytest
import torch
import transformers

from tests.conftest import BOS, EOS, FAMILIES, PAD, build_config, build_model, build_module, fixed_rollouts, own_logits
from tests.conftest import tokenizer as arithmetic_tokenizer
from tutelage.data.batching import collate, token_weights
from tutelage.errors import UserError
from tutelage.models import language_model
from tutelage.models.language_model import LanguageModel


def micro_of(model, lengths=((3, 4), (7, 1), (1, 6))):
    rollouts = fixed_rollouts(lengths)
    return collate(rollouts, token_weights(rollouts, "token"), model)


@pytest.mark.usefixtures("exact")
@pytest.mark.parametrize("family", FAMILIES)
def test_hidden_states_and_head_give_the_models_own_logits(family):
    model = build_model(family)
    micro = micro_of(model)
    with torch.no_grad():
        ours = model.head.logits(model.hidden(micro))
        torch.testing.assert_close(ours, own_logits(model, micro), rtol=1e-12, atol=1e-12)
    assert ours.shape == (11, 64)


def scaled_module(name):
    sizes = {"vocab_size": 64, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "pad_token_id": PAD, "eos_token_id": EOS}
    if name == "granite":
        config = transformers.GraniteConfig(**sizes, **heads, logits_scaling=4.0, bos_token_id=BOS)
    else:
        config = transformers.CohereConfig(**sizes, **heads, logit_scale=0.25, bos_token_id=BOS)
    torch.manual_seed(0)
    module = transformers.AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        module.get_output_embeddings().weight.normal_()
    return module


@pytest.mark.parametrize("name", ["granite", "cohere"])
def test_heads_with_a_scale(name, monkeypatch):
    module = scaled_module(name)
    assert LanguageModel(module, None, name).head.scale == 0.25
    monkeypatch.setattr(language_model, "_SCALES", {})
    with pytest.raises(UserError, match=rf"{name}: hidden states and head of .* has a scale, bias or cap"):
        LanguageModel(module, None, name)


def test_a_model_without_a_head():
    module = transformers.AutoModel.from_config(build_config("llama"))
    with pytest.raises(UserError, match="bare: the model LlamaModel has no language-model head"):
        LanguageModel(module, None, "bare")


def test_check_of_the_head_leaves_the_mode_alone():
    module = build_module("llama").train()
    LanguageModel(module, None, "x")
    assert module.training


def test_scale_and_cap_by_family():
    heads = {family: build_model(family).head for family in FAMILIES}
    assert {f: h.scale for f, h in heads.items() if h.scale != 1.0} == {"t5": 0.25}  # 16 ** -0.5
    assert {f: h.softcap for f, h in heads.items() if h.softcap is not None} == {"gemma2": 5.0}
    assert [f for f, h in heads.items() if h.bias is not None] == ["bart"]


def test_bart_bias_is_final_logits_bias():
    model = build_model("bart")
    assert torch.equal(model.head.bias, model.base.final_logits_bias[0])
    assert model.head.bias.abs().min() > 0


def test_head_is_cut_to_the_vocabulary():
    model = build_model("bart")
    model.vocab_size = 60
    assert model.head.weight.shape == (60, 16)
    assert torch.equal(model.head.bias, model.base.final_logits_bias[0, :60])


def test_eos_ids_are_those_of_configuration_and_tokenizer():
    module = build_module("llama", vocab=226)
    module.generation_config.eos_token_id = [7, 9]
    assert LanguageModel(module, None, "x").eos_ids == {7, 9}
    assert LanguageModel(module, arithmetic_tokenizer(), "x").eos_ids == {7, 9, EOS}
    module.generation_config.eos_token_id = None
    assert LanguageModel(module, None, "x").eos_ids == set()


def test_pad_id_falls_back_on_the_end_of_sequence():
    module = build_module("llama", vocab=226)
    module.config.pad_token_id = 5
    assert LanguageModel(module, arithmetic_tokenizer(), "x").pad_id == PAD
    assert LanguageModel(module, None, "x").pad_id == 5
    module.config.pad_token_id = None
    assert LanguageModel(module, None, "x").pad_id == EOS


def test_ends_are_joined_into_the_generation_configuration():
    module = build_module("llama", vocab=226)
    model = LanguageModel(module, arithmetic_tokenizer(), "x")
    module.generation_config.eos_token_id = EOS
    model.end_at([EOS])
    assert module.generation_config.eos_token_id == EOS  # nothing new: left as it was
    model.end_at({9, 7})
    assert module.generation_config.eos_token_id == [EOS, 7, 9]
    assert model.eos_ids == {EOS, 7, 9}
    module.generation_config.eos_token_id = None
    model.end_at([])
    assert module.generation_config.eos_token_id == [EOS]  # the tokenizer's, which serving would not know
    module.generation_config = None
    model.end_at([7])
    assert model.eos_ids == {EOS, 7}


def test_decoder_start_ids():
    model = build_model("bart")
    assert model.decoder_start_ids == (EOS,)
    model.base.generation_config.forced_bos_token_id = 0
    assert model.decoder_start_ids == (EOS, 0)
    model.config.decoder_start_token_id = None
    with pytest.raises(UserError, match=r"tiny-bart: config\.json has no decoder_start_token_id"):
        _ = model.decoder_start_ids


def test_max_positions():
    assert {f: build_model(f).max_positions for f in FAMILIES} == {
        "llama": 96, "qwen2": 96, "gpt2": 96, "gemma2": 96, "t5": None, "t5_v1_1": None, "bart": 96,
    }  # fmt: skip
    assert {f for f in FAMILIES if build_model(f).max_encoder_positions is not None} == {"bart"}


def test_sides_of_different_length():
    config = transformers.LEDConfig(
        vocab_size=64, d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2, attention_window=4,
        decoder_attention_heads=2, encoder_ffn_dim=8, decoder_ffn_dim=8, max_encoder_position_embeddings=64,
        max_decoder_position_embeddings=32, pad_token_id=PAD, bos_token_id=1, eos_token_id=EOS,
    )  # fmt: skip
    model = LanguageModel(transformers.LEDForConditionalGeneration(config).eval(), None, "led")
    assert (model.max_encoder_positions, model.max_positions) == (64, 32)
    assert model.lack_of_positions(64, 32) is None
    assert model.lack_of_positions(65, 32) == "led has 64 positions in its encoder"
    assert model.lack_of_positions(64, 33) == "led has 32 positions in its decoder"


def test_a_sequence_past_the_last_position():
    decoder, relative, both = (build_model(family) for family in ("gpt2", "t5", "bart"))
    assert decoder.lack_of_positions(90, 6) is None
    assert decoder.lack_of_positions(90, 7) == "tiny-gpt2 has 96 positions"
    assert relative.lack_of_positions(10_000, 10_000) is None
    assert both.lack_of_positions(96, 96) is None
    assert both.lack_of_positions(97, 1) == "tiny-bart has 96 positions in its encoder"
    both.base.generation_config.forced_bos_token_id = 0  # stands in front of the completion
    assert both.lack_of_positions(1, 96) == "tiny-bart has 96 positions in its decoder"


def test_the_last_position_is_the_last():
    """What `lack_of_positions` allows does go through the model, and one token more does not."""
    model = build_model("bart")
    model.base.generation_config.forced_bos_token_id = 1
    assert torch.isfinite(model.hidden(collate(fixed_rollouts(((96, 95),)), [[1.0] * 95], model))).all()
    with pytest.raises(IndexError):
        model.hidden(collate(fixed_rollouts(((96, 96),)), [[1.0] * 96], model))
    with pytest.raises(IndexError):
        model.hidden(collate(fixed_rollouts(((97, 95),)), [[1.0] * 95], model))


def test_n_positions_of_old_t5_configurations_is_no_limit():
    config = build_config("t5")
    config.n_positions = 512  # the published t5-small has it, and relative positions all the same
    model = LanguageModel(transformers.AutoModelForSeq2SeqLM.from_config(config).eval(), None, "t5-small")
    assert model.max_positions is None


def lora_on_the_head(module, **options):
    config = peft.LoraConfig(r=3, lora_alpha=6, target_modules=["lm_head"], task_type="CAUSAL_LM", **options)
    wrapped = peft.get_peft_model(module, config)
    layer = wrapped.get_base_model().lm_head
    with torch.no_grad():
        layer.lora_B["default"].weight.normal_(generator=torch.Generator().manual_seed(3))
    return LanguageModel(wrapped.eval(), None, "adapted"), layer


@pytest.mark.usefixtures("exact")
def test_adapted_head_has_the_effective_weight_and_its_gradient():
    model, layer = lora_on_the_head(build_module("llama"))
    down, up = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    torch.testing.assert_close(model.head.weight, layer.get_base_layer().weight + 2.0 * up @ down, rtol=0, atol=1e-12)

    micro = micro_of(model)
    mark = torch.randn(11, 64, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    ours = torch.autograd.grad((model.head.logits(model.hidden(micro)) * mark).sum(), [down, up])
    theirs = torch.autograd.grad((own_logits(model, micro) * mark).sum(), [down, up])
    for mine, reference in zip(ours, theirs, strict=True):
        assert reference.abs().max() > 0.1
        torch.testing.assert_close(mine, reference, rtol=1e-10, atol=1e-10)


def test_adapted_head_keeps_its_bias():
    module = build_module("llama")
    module.lm_head.bias = torch.nn.Parameter(torch.linspace(-2, 2, 64, dtype=torch.float64))
    model, _ = lora_on_the_head(module)
    assert torch.equal(model.head.bias, torch.linspace(-2, 2, 64, dtype=torch.float64))


def test_merged_and_disabled_adapters_count_once_and_not_at_all():
    model, layer = lora_on_the_head(build_module("llama"))
    effective, plain = model.head.weight.detach().clone(), layer.get_base_layer().weight.detach().clone()
    with model.module.disable_adapter():
        assert torch.equal(model.head.weight, plain)
    layer.merge()
    torch.testing.assert_close(model.head.weight, effective, rtol=0, atol=1e-6)
