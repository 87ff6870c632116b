"""Loading from GGUF files, quantised or not, and what users see when it fails."""

import pytest
import torch
import transformers

from tests.conftest import build_module, tokenizer
from tutelage.errors import UserError
from tutelage.models import load
from tutelage.models.language_model import LanguageModel
from tutelage.models.options import ModelConfig, StudentConfig

CPU = torch.device("cpu")
IDS = torch.tensor([[5, 17, 40, 9, 33]])


def logits(model):
    with torch.no_grad():
        return model.module(input_ids=IDS).logits


def interleaved(weight, heads):
    """llama.cpp's order of the rotary dimensions: pairs side by side instead of in halves."""
    rows, columns = weight.shape
    return weight.reshape(heads, 2, rows // heads // 2, columns).swapaxes(1, 2).reshape(rows, columns)


def write_gguf(path, module, quantised=()):
    """A llama GGUF file of float32 tensors, but for those named in `quantised`: Q8_0."""
    gguf = pytest.importorskip("gguf")
    config, writer = module.config, gguf.GGUFWriter(path, "llama")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(config.vocab_size)
    writer.add_eos_token_id(config.eos_token_id)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    for key, value in module.state_dict().items():
        array = value.numpy()
        if "q_proj" in key or "k_proj" in key:
            array = interleaved(array, config.num_attention_heads if "q_proj" in key else config.num_key_value_heads)
        name = names.get_name(key, try_suffixes=(".weight",))
        if key in quantised:
            kind = gguf.GGMLQuantizationType.Q8_0
            writer.add_tensor(name, gguf.quants.quantize(array, kind), raw_dtype=kind)
        else:
            writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_gguf_file(tmp_path):
    module = build_module("llama", vocab=len(tokenizer()), hidden=32, dtype=torch.float32)
    tokenizer().save_pretrained(tmp_path / "tokenizer")
    quantised = "model.layers.0.mlp.up_proj.weight"
    write_gguf(tmp_path / "exact.gguf", module)
    write_gguf(tmp_path / "q8.gguf", module, {quantised})

    options = ModelConfig(tokenizer=str(tmp_path / "tokenizer"))
    loaded = load.load(str(tmp_path / "exact.gguf"), options, CPU)
    expected = LanguageModel(module, tokenizer(), "x")
    torch.testing.assert_close(logits(loaded), logits(expected), rtol=1e-4, atol=1e-4)
    outline = load.outline(str(tmp_path / "exact.gguf"), options)
    for name in ("vocab_size", "eos_ids", "max_positions"):
        assert getattr(outline, name) == getattr(loaded, name), name
    by_option = load.load(str(tmp_path), options.model_copy(update={"gguf_file": "exact.gguf"}), CPU)
    assert torch.equal(logits(by_option), logits(loaded))

    student = load.load_student(str(tmp_path / "q8.gguf"), StudentConfig(tokenizer=options.tokenizer), None, CPU)
    weight, original = student.module.get_parameter(quantised), module.get_parameter(quantised)
    step = original.abs().amax() / 127
    assert 0 < (weight - original).abs().max() <= step / 2 * 1.01
    assert weight.requires_grad
    load.save(student, tmp_path / "saved")
    again = load.load(str(tmp_path / "saved"), ModelConfig(), CPU)
    assert torch.equal(logits(again), logits(student))


def test_missing_gguf_file(tmp_path, monkeypatch):
    folder = tmp_path / "llama"
    folder.mkdir()
    with pytest.raises(UserError, match=rf"no GGUF file 'absent\.gguf' in {folder}; that holds no \.gguf file"):
        load.load(str(folder / "absent.gguf"), ModelConfig(), CPU)
    with pytest.raises(UserError, match=r"no GGUF file 'absent\.gguf' in"):
        load.load(str(folder), ModelConfig(gguf_file="absent.gguf"), CPU)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "q8.gguf").touch()
    with pytest.raises(UserError, match=rf"no GGUF file 'nope\.gguf' in {tmp_path}; that holds q8\.gguf"):
        load.load("nope.gguf", ModelConfig(), CPU)
    with pytest.raises(
        UserError, match=rf"no model folder at 'models' \(looked up from {tmp_path}\); {tmp_path} holds llama, q8\.gguf"
    ):
        load.load("models/nope.gguf", ModelConfig(), CPU)


def test_gguf_file_on_the_hub(monkeypatch):
    asked = []

    def offline(path, gguf_file, **options):
        asked.append((path, gguf_file))
        raise OSError("We couldn't connect to the hub")

    monkeypatch.setattr(transformers.AutoConfig, "from_pretrained", offline)
    with pytest.raises(UserError, match=r"cannot load a model from 'someone/model': .* failed: We couldn't connect"):
        load.load("someone/model/q8.gguf", ModelConfig(), CPU)
    assert asked == [("someone/model", "q8.gguf")]
