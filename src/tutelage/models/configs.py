"""What is changed in a model's configuration before the model is built."""

from __future__ import annotations

from typing import Any

from tutelage.errors import UserError

_DROPOUT_FIELDS = (
    "dropout", "dropout_rate", "attention_dropout", "activation_dropout", "hidden_dropout", "resid_pdrop", "embd_pdrop", "attn_pdrop",
    "embed_dropout", "resid_dropout",
)  # fmt: skip


def set_dropout(config: Any, rate: float) -> None:
    """Replaces every dropout rate of a configuration, in place."""
    fields = config.to_dict()
    for name in _DROPOUT_FIELDS:
        if name in fields:
            setattr(config, name, rate)


def attention_for(config: Any, asked: str | None) -> str | None:
    """The attention implementation to build a model with; None leaves the choice to transformers.

    Its default, sdpa, leaves an attention soft-cap (Gemma 2) out without a word; models that have one get "eager".

    Raises:
        UserError: sdpa was asked for and the model has an attention soft-cap.
    """
    fields = config.to_dict()
    parts = [fields, *(part for part in fields.values() if isinstance(part, dict))]
    if all(part.get("attn_logit_softcapping") is None for part in parts):
        return asked
    if asked == "sdpa":
        raise UserError(
            f"attn_implementation=sdpa leaves out the attention soft-cap that {config.model_type} was trained with; "
            "use eager, or drop the option"
        )
    return asked or "eager"
