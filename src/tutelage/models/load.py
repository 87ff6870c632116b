"""Loading: a Hugging Face folder, a hub name, a GGUF file, fresh weights for a config, or the teacher's own layers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from tutelage.errors import UserError
from tutelage.models.language_model import LanguageModel
from tutelage.models.options import LoraConfig, ModelConfig, StudentConfig
from tutelage.models.thin import thin

_DROPOUT_FIELDS = (
    "dropout", "dropout_rate", "attention_dropout", "activation_dropout", "hidden_dropout", "resid_pdrop", "embd_pdrop", "attn_pdrop",
)  # fmt: skip


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
        UserError: the folder does not exist or holds no model, or the model cannot be taken apart.
    """
    import transformers

    path, gguf_file = _split_gguf(path, options.gguf_file)
    _check_path(path)
    where = {"revision": options.revision, "trust_remote_code": options.trust_remote_code}
    gguf = {"gguf_file": gguf_file} if gguf_file else {}
    try:
        config = transformers.AutoConfig.from_pretrained(path, **where, **gguf)
        tokenizer = transformers.AutoTokenizer.from_pretrained(
            options.tokenizer or path, **where, **({} if options.tokenizer else gguf)
        )
        for field in _DROPOUT_FIELDS if dropout is not None else ():
            if field in config.to_dict():
                setattr(config, field, dropout)
        auto = transformers.AutoModelForSeq2SeqLM if config.is_encoder_decoder else transformers.AutoModelForCausalLM
        if fresh:
            module = auto.from_config(
                config, dtype=_dtype(options, "float32"), trust_remote_code=options.trust_remote_code
            )
        else:
            # A GGUF file is dequantised while loading, and in float32 only does that lose nothing.
            dtype = "float32" if gguf_file else _dtype(options, "auto")
            extra = {"attn_implementation": options.attn_implementation} if options.attn_implementation else {}
            if options.quantization:
                extra["quantization_config"] = _quantisation(options.quantization)
            module = auto.from_pretrained(path, config=config, dtype=dtype, **where, **gguf, **extra)
    except (OSError, ImportError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"cannot load a model from {path!r}: {error}") from error
    if gguf_file:
        _forget_quantisation(module)
        module = module.to(_dtype(options, "float32"))
    if options.quantization is None:
        module = module.to(device)
    return LanguageModel(module.eval(), tokenizer, path)


def load_teacher(path: str, options: ModelConfig, device: torch.device) -> LanguageModel:
    """The teacher: evaluation mode, no gradients."""
    teacher = load(path, options, device)
    teacher.module.requires_grad_(False)
    return teacher


def load_student(
    path: str | None, options: StudentConfig, teacher: LanguageModel | None, device: torch.device
) -> LanguageModel:
    """The student, made as `options.init` says, with adapters and gradient checkpointing as asked.

    Raises:
        UserError: as `load`; or init=teacher_layers without a teacher.
    """
    dtype = getattr(torch, options.dtype or "float32")
    if options.init == "teacher_layers":
        if teacher is None:
            raise UserError("student_model.init=teacher_layers needs a teacher: set --teacher")
        if options.layers is None:
            raise UserError("student_model.init=teacher_layers needs student_model.layers")
        student = LanguageModel(
            thin(teacher.base, options.layers).to(device, dtype),
            teacher.tokenizer,
            f"{teacher.name} ({options.layers} layers)",
        )
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
    """The model with low-rank adapters; only these are trained."""
    import peft

    targets = options.target_modules
    config = peft.LoraConfig(
        r=options.rank,
        lora_alpha=options.alpha,
        lora_dropout=options.dropout,
        target_modules=targets if isinstance(targets, str) else list(targets),
        task_type="SEQ_2_SEQ_LM" if model.is_encoder_decoder else "CAUSAL_LM",
    )
    return LanguageModel(peft.get_peft_model(model.base, config), model.tokenizer, model.name)


def save(model: LanguageModel, folder: Path) -> None:
    """Writes an ordinary Hugging Face folder (adapters merged) that `from_pretrained` loads."""
    import copy

    module = model.module
    if module is not model.base:
        module = copy.deepcopy(module).merge_and_unload()
    module.save_pretrained(folder)
    model.tokenizer.save_pretrained(folder)


def _split_gguf(path: str, gguf_file: str | None) -> tuple[str, str | None]:
    if path.endswith(".gguf"):
        return str(Path(path).parent), Path(path).name
    return path, gguf_file


def _check_path(path: str) -> None:
    """A path that looks local must exist: else the hub is asked, and its error names the wrong problem."""
    local = Path(path).expanduser()
    if local.is_dir() or (not path.startswith((".", "/", "~")) and path.count("/") <= 1 and not local.exists()):
        return
    seen = sorted(p.name for p in local.parent.iterdir())[:8] if local.parent.is_dir() else []
    raise UserError(
        f"no model folder at {path!r}"
        + (f"; {local.parent} holds {', '.join(seen)}" if seen else f"; {local.parent} does not exist either")
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
