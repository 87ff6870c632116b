"""Loading: a Hugging Face folder, a hub name, a GGUF file, fresh weights for a config, or the teacher's own layers."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from tutelage.errors import UserError, how_to_install
from tutelage.models.configs import attention_for, set_dropout
from tutelage.models.folders import looked_up, whole_folder
from tutelage.models.language_model import LanguageModel
from tutelage.models.options import LoraConfig, ModelConfig, StudentConfig
from tutelage.models.thin import cast, thin


def load(
    path: str, options: ModelConfig, device: torch.device, *, fresh: bool = False, dropout: float | None = None
) -> LanguageModel:
    """A model of either family with its tokenizer.

    Args:
        path: folder, hub name, or a .gguf file.
        options: dtype, tokenizer, quantisation, ...
        device: where it goes.
        fresh: random weights for the folder's config.json instead of its weights.
        dropout: replaces every dropout rate of the configuration.

    Raises:
        UserError: the folder or the file does not exist, is that of a run, or holds no complete model; bitsandbytes is needed
            and not installed; or the model cannot be taken apart.
    """
    from safetensors import SafetensorError

    path, gguf_file = _located(path, options.gguf_file)
    try:
        module, tokenizer = _load_parts(path, gguf_file, options, fresh, dropout)
    except UserError:
        raise
    except (OSError, ImportError, ValueError, RuntimeError, SafetensorError) as error:
        on_hub = f"there is no folder {path!r} in {Path.cwd()}, and loading it from the Hugging Face hub failed: "
        raise UserError(f"cannot load a model from {path!r}: {'' if Path(path).is_dir() else on_hub}{error}") from error
    if gguf_file:
        _forget_quantisation(module)
        cast(module, _dtype(options, "float32"))
    if options.quantization is None:
        module = module.to(device)
    return LanguageModel(module.eval(), tokenizer, path)


def _load_parts(
    path: str, gguf_file: str | None, options: ModelConfig, fresh: bool, dropout: float | None
) -> tuple[Any, Any]:
    """The module and the tokenizer, as transformers loads them; its errors come through."""
    import transformers

    where = {"revision": options.revision, "trust_remote_code": options.trust_remote_code}
    gguf = {"gguf_file": gguf_file} if gguf_file else {}
    config = transformers.AutoConfig.from_pretrained(path, **where, **gguf)
    tokenizer = transformers.AutoTokenizer.from_pretrained(
        options.tokenizer or path, **where, **({} if options.tokenizer else gguf)
    )
    if dropout is not None:
        set_dropout(config, dropout)
    auto = transformers.AutoModelForSeq2SeqLM if config.is_encoder_decoder else transformers.AutoModelForCausalLM
    attention = attention_for(config, options.attn_implementation)
    extra: dict[str, Any] = {} if attention is None else {"attn_implementation": attention}
    if fresh:
        dtype = _dtype(options, "float32")
        return auto.from_config(config, dtype=dtype, trust_remote_code=options.trust_remote_code, **extra), tokenizer
    _check_bitsandbytes(path, options.quantization or config.to_dict().get("quantization_config") or {})
    if options.quantization:
        extra["quantization_config"] = _quantisation(options.quantization)
    # A GGUF file is dequantised while loading, and in float32 only does that lose nothing.
    dtype = "float32" if gguf_file else _dtype(options, "auto")
    module, report = auto.from_pretrained(
        path, config=config, dtype=dtype, output_loading_info=True, **where, **gguf, **extra
    )
    if report["missing_keys"]:
        missing = sorted(report["missing_keys"])
        raise UserError(
            f"the checkpoint at {path!r} lacks {len(missing)} weights of {type(module).__name__}, the first: {missing[0]}; "
            "its config.json describes another model than its weights, or it has no language-model head"
        )
    return module, tokenizer


def load_teacher(path: str, options: ModelConfig, device: torch.device) -> LanguageModel:
    """The teacher: evaluation mode, no gradients."""
    teacher = load(path, options, device)
    teacher.module.requires_grad_(False)
    return teacher


class _Outline(LanguageModel):
    """A model on torch's meta device, where tensors have shapes and no numbers."""

    def _check_head(self) -> None:
        """There are no logits to compare."""


def outline(path: str, options: ModelConfig, *, fresh: bool = False) -> LanguageModel:
    """A model without its weights: what its configuration and its tokenizer say of ends, vocabulary and positions.

    Args:
        path: folder, hub name, or a .gguf file.
        options: as of `load`.
        fresh: as of `load`; generation_config.json is for the folder's own weights.

    Raises:
        UserError: configuration or tokenizer cannot be loaded.
    """
    from transformers import GenerationConfig

    located, gguf_file = _located(path, options.gguf_file)
    try:
        with torch.device("meta"):
            module, tokenizer = _load_parts(located, gguf_file, options, fresh=True, dropout=None)
    except UserError:
        raise
    except (OSError, ImportError, ValueError, RuntimeError) as error:
        raise UserError(f"cannot load configuration and tokenizer of a model from {path!r}: {error}") from error
    if not fresh and gguf_file is None:
        with suppress(OSError):  # there is no such file: the model's own configuration says it all
            module.generation_config = GenerationConfig.from_pretrained(located, revision=options.revision)
    return _Outline(module, tokenizer, located)


def load_student(
    path: str | None, options: StudentConfig, teacher: LanguageModel | None, device: torch.device
) -> LanguageModel:
    """The student, made as `options.init` says, with adapters and gradient checkpointing as asked.

    Raises:
        UserError: as `load`; options that contradict each other; or init=teacher_layers without a teacher.
    """
    if options.quantization and not options.lora.rank:
        raise UserError(
            "quantised weights cannot be trained; set student_model.lora.rank, or drop student_model.quantization"
        )
    dtype = getattr(torch, options.dtype or "float32")
    if options.init == "teacher_layers":
        if teacher is None:
            raise UserError("student_model.init=teacher_layers needs a teacher: set --teacher")
        if options.layers is None:
            raise UserError("student_model.init=teacher_layers needs student_model.layers")
        if teacher.config.to_dict().get("quantization_config") is not None:
            raise UserError(
                "student_model.init=teacher_layers needs a teacher in full precision: drop teacher_model.quantization"
            )
        thinned = thin(teacher.base, options.layers, options.dropout, dtype).to(device)
        student = LanguageModel(thinned, teacher.tokenizer, f"{teacher.name} ({options.layers} layers)")
    else:
        if path is None:
            raise UserError("no student given: set --student to a folder or a hub name")
        typed = options.model_copy(update={"dtype": options.dtype or "float32"})
        student = load(path, typed, device, fresh=options.init == "config", dropout=options.dropout)
    if options.lora.rank:
        student = add_lora(student, options.lora)
    else:
        student.module.requires_grad_(True)
    if options.gradient_checkpointing:
        student.base.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        if options.lora.rank:  # frozen embeddings would cut the graph off in front of the first checkpoint
            student.base.enable_input_require_grads()
    return student


def add_lora(model: LanguageModel, options: LoraConfig) -> LanguageModel:
    """The model with low-rank adapters; only these are trained.

    Raises:
        UserError: no module has the name of a target, or the head is a target and shares its weight with the embeddings.
    """
    import peft
    from peft.tuners.lora import LoraLayer

    targets = options.target_modules
    config = peft.LoraConfig(
        r=options.rank,
        lora_alpha=options.alpha,
        lora_dropout=options.dropout,
        target_modules=targets if isinstance(targets, str) else list(targets),
        task_type="SEQ_2_SEQ_LM" if model.is_encoder_decoder else "CAUSAL_LM",
    )
    try:
        module = peft.get_peft_model(model.base, config)
    except ValueError as error:
        raise UserError(f"student_model.lora.target_modules={targets}: {error}") from error
    adapted = LanguageModel(module, model.tokenizer, model.name)
    head, embedding = adapted.base.get_output_embeddings(), adapted.base.get_input_embeddings()
    if isinstance(head, LoraLayer) and head.weight is embedding.weight:
        raise UserError(
            f"{model.name}: the head shares its weight with the embeddings, so that an adapter on it cannot be merged when the "
            f"student is saved; drop it from student_model.lora.target_modules={targets}"
        )
    return adapted


def save(model: LanguageModel, folder: Path) -> None:
    """Writes an ordinary Hugging Face folder (adapters merged) that `from_pretrained` loads, whole or not at all.

    Where it has a config.json it has all of the model. An earlier folder is replaced.
    """
    import copy

    module = model.module
    if module is not model.base:
        module = copy.deepcopy(module).merge_and_unload()
    with whole_folder(folder) as partial:
        module.save_pretrained(partial)
        model.tokenizer.save_pretrained(partial)


def _located(path: str, gguf_file: str | None) -> tuple[str, str | None]:
    """The folder, ~ expanded, or hub name, and the GGUF file in it.

    What looks local must exist: else the hub is asked, and its error misleads.
    """
    slashes_on_hub: tuple[int, ...] = (0, 1)
    if path.endswith(".gguf"):
        slashes_on_hub = (1,)  # OWNER/NAME/FILE: a single name before the file is a folder's
        folder, slash, gguf_file = path.rpartition("/")
        path = folder or slash or "."
    local = Path(path).expanduser()
    if local.is_dir():
        _check_folder(local, gguf_file)
        return str(local), gguf_file
    if not path.startswith((".", "/", "~")) and path.count("/") in slashes_on_hub and not local.exists():
        return path, gguf_file
    seen = sorted(p.name for p in local.parent.iterdir())[:8] if local.parent.is_dir() else []
    raise UserError(
        f"no model folder at {path!r}{looked_up(path)}; "
        + (f"{local.parent.absolute()} holds {', '.join(seen)}" if seen else f"{local.parent} does not exist either")
    )


def _check_folder(folder: Path, gguf_file: str | None) -> None:
    """Raises UserError when a folder lacks the GGUF file asked for, or is that of a run, which has its model inside."""
    if gguf_file is not None:
        if not (folder / gguf_file).is_file():
            seen = ", ".join(sorted(path.name for path in folder.glob("*.gguf"))) or "no .gguf file"
            raise UserError(f"no GGUF file {gguf_file!r} in {folder.absolute()}; that holds {seen}")
    elif not (folder / "config.json").exists() and (folder / "run.json").is_file() and (folder / "model").is_dir():
        raise UserError(f"{folder} is the folder of a run, not of a model; give the model in it: {folder / 'model'}")


def _check_bitsandbytes(path: str, quantization: Mapping[str, Any]) -> None:
    """Raises UserError when a quantisation is by bitsandbytes, of which 4 and 8 bits are a sign too, and there is none."""
    asked = str(quantization.get("quant_method")).startswith("bitsandbytes")
    asked = asked or bool(quantization.get("load_in_4bit") or quantization.get("load_in_8bit"))
    if asked and find_spec("bitsandbytes") is None:
        raise UserError(
            f"{path!r} is to be quantised by bitsandbytes, which is not installed: {how_to_install('quantised')}"
        )


def _dtype(options: ModelConfig, default: str) -> Any:
    return (
        getattr(torch, options.dtype) if options.dtype else (default if default == "auto" else getattr(torch, default))
    )


def _quantisation(fields: dict[str, Any]) -> Any:
    from transformers.quantizers.auto import AutoQuantizationConfig

    return AutoQuantizationConfig.from_dict(dict(fields))


def _forget_quantisation(module: Any) -> None:
    """A GGUF checkpoint is dequantised on loading; transformers still calls it quantised and would refuse to train it."""
    if "quantization_config" in module.config.to_dict():
        del module.config.quantization_config
    module.hf_quantizer = None
    module.is_quantized = False
