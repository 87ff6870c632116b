"""Configuration of how models are loaded."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from tutelage.section import Section

Dtype = Literal["float32", "bfloat16"]


class ModelConfig(Section):
    """How a model is loaded."""

    dtype: Dtype | None = None
    """Parameters and matrix work; None: float32 for the student, the checkpoint's own for the teacher. A bfloat16 student keeps float32
    master weights."""
    gguf_file: str | None = None
    """Name of a GGUF file inside the folder."""
    tokenizer: str | None = None
    """Folder or hub name of the tokenizer, where it is not beside the model."""
    revision: str | None = None
    """Branch, tag or commit on the hub."""
    trust_remote_code: bool = False
    """Run the model code that a hub repository brings."""
    attn_implementation: str | None = None
    """Attention of transformers: sdpa, eager, flash_attention_2, ..."""
    quantization: dict[str, Any] | None = None
    """Keyword arguments of transformers' own quantisation configuration, e.g. {"quant_method": "bitsandbytes", "load_in_4bit": true}."""


class LoraConfig(Section):
    """Low-rank adapters on the student, through PEFT."""

    rank: int = Field(0, ge=0)
    """Rank of the adapters; 0: no adapters, all weights are trained."""
    alpha: float = 32.0
    """Scale of the adapters."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Dropout on the adapters' input."""
    target_modules: tuple[str, ...] | Literal["all-linear"] = "all-linear"
    """Modules that get an adapter."""


class StudentConfig(ModelConfig):
    """How the student comes into being."""

    init: Literal["pretrained", "config", "teacher_layers"] = "pretrained"
    """pretrained: weights of the folder; config: fresh weights for its config.json; teacher_layers: the teacher thinned
    to `layers` layers."""
    layers: int | None = Field(None, ge=1)
    """Layers kept by init=teacher_layers (first and last always among them when there are two or more)."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more time."""
    dropout: float | None = Field(None, ge=0, lt=1)
    """Dropout while training; None: what the model's configuration says. Rollouts and evaluation never drop."""
    lora: LoraConfig = LoraConfig()
    """Low-rank adapters."""
