"""Loading from folders and GGUF files, fresh weights, adapters, saving, and what users see when it fails."""

import json
import shutil

import pytest
import torch
import transformers

from tests.conftest import FAMILIES, build_config, build_model, build_module
from tutelage.errors import UserError
from tutelage.models import load
from tutelage.models.options import LoraConfig, ModelConfig, StudentConfig

CPU = torch.device("cpu")
IDS = torch.tensor([[5, 17, 40, 9, 33]])


def logits(model):
    extra = {"decoder_input_ids": IDS.flip(1)} if model.is_encoder_decoder else {}
    with torch.no_grad():
        return model.module(input_ids=IDS, **extra).logits


def write(folder, family, **options):
    """A folder with a model and its tokenizer; returns the model that was saved."""
    model = build_model(family, with_tokenizer=True, dtype=torch.float32, **options)
    load.save(model, folder)
    return model


@pytest.fixture(scope="module")
def llama_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "llama"
    write(folder, "llama", layers=3)
    return folder


def lora(**fields):
    return StudentConfig(lora=LoraConfig(rank=2, alpha=4.0, **fields))


def shake_adapters(model):
    """Adapters start at zero; make them matter."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.module.named_parameters():
            if "lora_B" in name:
                parameter.normal_(generator=generator)


@pytest.mark.parametrize("family", FAMILIES)
def test_saved_folder_loads_to_the_same_logits(family, tmp_path):
    saved = write(tmp_path, family)
    loaded = load.load(str(tmp_path), ModelConfig(), CPU)
    assert torch.equal(logits(loaded), logits(saved))
    assert loaded.tokenizer.get_vocab() == saved.tokenizer.get_vocab()
    assert (loaded.name, loaded.dtype, loaded.module.training) == (str(tmp_path), torch.float32, False)


def test_dtype_is_the_checkpoints_own_unless_asked(tmp_path):
    model = write(tmp_path, "llama")
    model.module.to(torch.bfloat16).save_pretrained(tmp_path)
    assert load.load(str(tmp_path), ModelConfig(), CPU).dtype == torch.bfloat16
    assert load.load(str(tmp_path), ModelConfig(dtype="float32"), CPU).dtype == torch.float32
    assert load.load_student(str(tmp_path), StudentConfig(), None, CPU).dtype == torch.float32


def test_home_is_expanded(llama_folder, monkeypatch):
    monkeypatch.setenv("HOME", str(llama_folder.parent))
    assert load.load("~/llama", ModelConfig(), CPU).name == str(llama_folder)


def test_teacher_has_no_gradients(llama_folder):
    assert not any(
        p.requires_grad for p in load.load_teacher(str(llama_folder), ModelConfig(), CPU).module.parameters()
    )


def test_fresh_weights(llama_folder):
    options = StudentConfig(init="config")
    torch.manual_seed(1)
    first = load.load_student(str(llama_folder), options, None, CPU)
    torch.manual_seed(1)
    second = load.load_student(str(llama_folder), options, None, CPU)
    pretrained = load.load_student(str(llama_folder), StudentConfig(), None, CPU)
    assert torch.equal(first.head.weight, second.head.weight)
    assert first.head.weight.shape == pretrained.head.weight.shape
    assert first.head.weight.std() < 0.03 < pretrained.head.weight.std()  # transformers' initialisation: 0.02
    assert all(p.requires_grad for p in first.module.parameters())


def test_dropout_override(tmp_path, llama_folder):
    write(tmp_path, "t5", dropout=0.3)
    assert load.load_student(str(tmp_path), StudentConfig(), None, CPU).config.dropout_rate == 0.3
    student = load.load_student(str(tmp_path), StudentConfig(dropout=0.0), None, CPU)
    rates = {m.p for m in student.module.modules() if isinstance(m, torch.nn.Dropout)}
    assert (student.config.dropout_rate, rates) == (0.0, {0.0})
    thinned = StudentConfig(init="teacher_layers", layers=1, dropout=0.25)
    teacher = load.load_teacher(str(llama_folder), ModelConfig(), CPU)
    assert load.load_student(None, thinned, teacher, CPU).config.attention_dropout == 0.25
    assert teacher.config.attention_dropout == 0.0


def test_attention_softcap_is_never_dropped(tmp_path):
    saved = write(tmp_path, "gemma2")
    for fresh in (False, True):
        assert load.load(str(tmp_path), ModelConfig(), CPU, fresh=fresh).config._attn_implementation == "eager"
    assert load.load(str(tmp_path), ModelConfig(), CPU).name != saved.name
    with pytest.raises(UserError, match="attn_implementation=sdpa leaves out the attention soft-cap that gemma2"):
        load.load(str(tmp_path), ModelConfig(attn_implementation="sdpa"), CPU)


def test_attention_as_asked(llama_folder):
    for fresh in (False, True):
        model = load.load(str(llama_folder), ModelConfig(attn_implementation="eager"), CPU, fresh=fresh)
        assert model.config._attn_implementation == "eager"
    assert load.load(str(llama_folder), ModelConfig(), CPU).config._attn_implementation == "sdpa"


# --- students ---------------------------------------------------------------------------------------------------------


def test_student_of_the_teachers_layers(llama_folder):
    teacher = load.load_teacher(str(llama_folder), ModelConfig(), CPU)
    student = load.load_student(None, StudentConfig(init="teacher_layers", layers=2), teacher, CPU)
    assert student.name == f"{llama_folder} (2 layers)"
    assert student.config.num_hidden_layers == 2
    assert all(p.requires_grad for p in student.module.parameters())
    assert torch.equal(student.head.weight, teacher.head.weight)
    assert student.head.weight.data_ptr() != teacher.head.weight.data_ptr()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (StudentConfig(init="teacher_layers", layers=2), "needs a teacher: set --teacher"),
        (StudentConfig(), "no student given: set --student"),
        (StudentConfig(quantization={"quant_method": "bitsandbytes"}), "quantised weights cannot be trained"),
    ],
)
def test_students_that_cannot_be(options, message):
    with pytest.raises(UserError, match=message):
        load.load_student(None, options, None, CPU)


@pytest.mark.parametrize("init", ["pretrained", "config", "teacher_layers"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_bfloat16_student_computes_what_it_computes_once_saved_and_loaded(family, init, tmp_path):
    """Whatever type its weights are given, buffers that no checkpoint holds are those of a loaded model."""
    teacher = write(tmp_path / "teacher", family, layers=3)
    folder = None if init == "teacher_layers" else str(tmp_path / "teacher")
    layers = 2 if init == "teacher_layers" else None
    student = load.load_student(folder, StudentConfig(init=init, layers=layers, dtype="bfloat16"), teacher, CPU)
    assert {parameter.dtype for parameter in student.module.parameters()} == {torch.bfloat16}
    load.save(student, tmp_path / "student")
    again = load.load(str(tmp_path / "student"), ModelConfig(dtype="bfloat16"), CPU)
    buffers, others = dict(student.module.named_buffers()), dict(again.module.named_buffers())
    assert {name: buffer.dtype for name, buffer in buffers.items()} == {name: b.dtype for name, b in others.items()}
    assert all(torch.equal(buffer, others[name]) for name, buffer in buffers.items())
    assert torch.equal(logits(student), logits(again))


def test_teacher_layers_needs_layers():
    with pytest.raises(UserError, match=r"needs student_model\.layers"):
        load.load_student(None, StudentConfig(init="teacher_layers"), build_model("llama"), CPU)


@pytest.mark.parametrize("family", FAMILIES)
def test_adapters_alone_are_trained_and_merge_on_saving(family, tmp_path):
    torch.manual_seed(0)  # of the adapters: float32 has fewer digits left where they are large
    original = write(tmp_path / "base", family)
    student = load.load_student(str(tmp_path / "base"), lora(), None, CPU)
    trained = [name for name, p in student.module.named_parameters() if p.requires_grad]
    assert trained
    assert all("lora_" in name for name in trained)
    assert torch.equal(logits(student), logits(original))  # adapters start at zero

    shake_adapters(student)
    adapted = logits(student)
    assert (adapted - logits(original)).abs().max() > 0.1
    load.save(student, tmp_path / "saved")
    loaded = load.load(str(tmp_path / "saved"), ModelConfig(), CPU)
    torch.testing.assert_close(logits(loaded), adapted, rtol=1e-4, atol=1e-4)
    assert torch.equal(logits(student), adapted)  # saving leaves the student alone
    assert not any("lora" in name for name in loaded.module.state_dict())


def test_adapter_on_an_untied_head_survives_saving(llama_folder, tmp_path):
    student = load.load_student(str(llama_folder), lora(target_modules=("lm_head", "q_proj")), None, CPU)
    shake_adapters(student)
    load.save(student, tmp_path)
    torch.testing.assert_close(
        logits(load.load(str(tmp_path), ModelConfig(), CPU)), logits(student), rtol=1e-4, atol=1e-4
    )


def test_adapter_on_a_tied_head_is_refused(tmp_path):
    write(tmp_path, "qwen2")
    with pytest.raises(UserError, match="the head shares its weight with the embeddings"):
        load.load_student(str(tmp_path), lora(target_modules=("lm_head",)), None, CPU)


def test_unknown_adapter_target(llama_folder):
    with pytest.raises(UserError, match=r"student_model\.lora\.target_modules=\('query',\): .*not found"):
        load.load_student(str(llama_folder), lora(target_modules=("query",)), None, CPU)


def test_a_failure_while_saving_leaves_the_earlier_model(tmp_path, monkeypatch):
    earlier = write(tmp_path / "model", "llama")
    monkeypatch.setattr(type(earlier.tokenizer), "save_pretrained", lambda *args: 1 / 0)  # behind the module
    with pytest.raises(ZeroDivisionError):
        write(tmp_path / "model", "llama", seed=1)
    assert torch.equal(logits(load.load(str(tmp_path / "model"), ModelConfig(), CPU)), logits(earlier))
    with pytest.raises(ZeroDivisionError):
        write(tmp_path / "none", "llama")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


@pytest.mark.usefixtures("exact")
@pytest.mark.parametrize("adapters", [False, True])
@pytest.mark.parametrize("family", ["llama", "t5"])
def test_gradient_checkpointing_keeps_the_gradient(family, adapters, tmp_path):
    write(tmp_path, family)
    gradients = []
    for checkpointing in (False, True):
        options = StudentConfig(lora=LoraConfig(rank=2 if adapters else 0), gradient_checkpointing=checkpointing)
        torch.manual_seed(0)
        student = load.load_student(str(tmp_path), options, None, CPU)
        shake_adapters(student)
        student.module.double().train()
        extra = {"decoder_input_ids": IDS} if student.is_encoder_decoder else {}
        student.module(input_ids=IDS, **extra, use_cache=False).logits.square().mean().backward()
        gradients.append({n: p.grad for n, p in student.module.named_parameters() if p.requires_grad})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        assert torch.allclose(gradients[1][name], gradient, rtol=1e-10, atol=1e-12), name


# --- what goes wrong --------------------------------------------------------------------------------------------------


def test_missing_folder_names_what_is_there(llama_folder):
    with pytest.raises(UserError, match=rf"no model folder at '{llama_folder}x'; {llama_folder.parent} holds llama"):
        load.load(f"{llama_folder}x", ModelConfig(), CPU)
    with pytest.raises(UserError, match="no model folder at '/no/such/model'; /no/such does not exist either"):
        load.load("/no/such/model", ModelConfig(), CPU)


@pytest.mark.parametrize("name", ["nosuch", "someone/model"])
def test_hub_name_without_a_network(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def offline(*args, **kwargs):
        raise OSError("We couldn't connect to the hub")

    monkeypatch.setattr(transformers.AutoConfig, "from_pretrained", offline)
    message = (
        f"cannot load a model from '{name}': there is no folder '{name}' in {tmp_path}, and loading it from the Hugging Face hub "
        "failed: We couldn't connect"
    )
    with pytest.raises(UserError, match=message):
        load.load(name, ModelConfig(), CPU)


def test_folder_without_a_model(tmp_path):
    with pytest.raises(UserError, match=rf"cannot load a model from '{tmp_path}': (?!there is no folder)"):
        load.load(str(tmp_path), ModelConfig(), CPU)


def test_folder_of_a_run_names_the_model_in_it(llama_folder, tmp_path):
    run = tmp_path / "gkd"
    shutil.copytree(llama_folder, run / "model")
    (run / "run.json").write_text("{}")
    with pytest.raises(
        UserError, match=rf"{run} is the folder of a run, not of a model; give the model in it: {run}/model"
    ):
        load.load(str(run), ModelConfig(), CPU)
    assert load.load(str(run / "model"), ModelConfig(), CPU).name == str(run / "model")


def copied(llama_folder, tmp_path):
    return shutil.copytree(llama_folder, tmp_path / "copy")


def test_folder_without_a_tokenizer(llama_folder, tmp_path):
    folder = copied(llama_folder, tmp_path)
    for path in folder.glob("tokenizer*"):
        path.unlink()
    with pytest.raises(UserError, match="cannot load a model from"):
        load.load(str(folder), ModelConfig(), CPU)
    assert load.load(str(folder), ModelConfig(tokenizer=str(llama_folder)), CPU).tokenizer.eos_token_id == 2


def test_damaged_weights(llama_folder, tmp_path):
    weights = copied(llama_folder, tmp_path) / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    with pytest.raises(UserError, match="cannot load a model from"):
        load.load(str(weights.parent), ModelConfig(), CPU)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_hidden_layers": 4}, r"lacks 9 weights of LlamaForCausalLM, the first: model\.layers\.3\."),
        ({"intermediate_size": 48}, "cannot load a model from"),
    ],
)
def test_weights_of_another_configuration(llama_folder, tmp_path, change, message):
    folder = copied(llama_folder, tmp_path)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **change}))
    with pytest.raises(UserError, match=message):
        load.load(str(folder), ModelConfig(), CPU)


@pytest.mark.parametrize("quantization", [{"quant_method": "tiny_bits"}, {"load_in_4bit": False}])
def test_unknown_quantisation(llama_folder, quantization):
    with pytest.raises(UserError, match=r"cannot load a model from .*quant"):
        load.load_teacher(str(llama_folder), ModelConfig(quantization=quantization), CPU)


QUANTISED = [
    {"quant_method": "bitsandbytes", "load_in_8bit": True},
    {"load_in_4bit": True},
    {"quant_method": "bitsandbytes_8bit"},
]


@pytest.mark.parametrize("given_by", ["option", "checkpoint"])
@pytest.mark.parametrize("quantization", QUANTISED)
def test_quantisation_without_bitsandbytes(quantization, given_by, llama_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(load, "find_spec", lambda name: None)
    folder, options = copied(llama_folder, tmp_path), ModelConfig(quantization=quantization)
    if given_by == "checkpoint":
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, "quantization_config": quantization}))
        options = ModelConfig()
    with pytest.raises(
        UserError,
        match=r"copy' is to be quantised by bitsandbytes, which is not installed: pip install .*\[quantised\]",
    ):
        load.load_teacher(str(folder), options, CPU)


# --- the fixtures -----------------------------------------------------------------------------------------------------


def test_configurations_of_the_fixtures_have_the_families_they_name():
    assert build_config("t5").scale_decoder_outputs
    assert not build_config("t5_v1_1").scale_decoder_outputs
    assert build_module("t5_v1_1").lm_head.weight is not build_module("t5_v1_1").shared.weight
    assert build_config("gemma2").layer_types == ["sliding_attention", "full_attention"]


@pytest.mark.parametrize("family", ["llama", "gpt2", "bart", "t5"])
def test_an_outline_is_the_model_without_its_weights(family, tmp_path):
    written = write(tmp_path / "model", family)
    written.module.generation_config.eos_token_id = [2, 5]
    load.save(written, tmp_path / "model")
    whole = load.load(str(tmp_path / "model"), ModelConfig(), torch.device("cpu"))
    found = load.outline(str(tmp_path / "model"), ModelConfig())
    for name in ("name", "is_encoder_decoder", "vocab_size", "eos_ids", "max_positions", "max_encoder_positions"):
        assert getattr(found, name) == getattr(whole, name), name
    assert found.lack_of_positions(60, 60) == whole.lack_of_positions(60, 60)
    assert found.tokenizer.get_vocab() == whole.tokenizer.get_vocab()
    assert {parameter.device.type for parameter in found.module.parameters()} == {"meta"}
    fresh = load.outline(str(tmp_path / "model"), ModelConfig(), fresh=True)
    assert fresh.eos_ids == load.load(str(tmp_path / "model"), ModelConfig(), torch.device("cpu"), fresh=True).eos_ids


def test_an_outline_of_no_model_says_so(tmp_path):
    with pytest.raises(UserError, match=f"cannot load configuration and tokenizer of a model from '{tmp_path}'"):
        load.outline(str(tmp_path), ModelConfig())
