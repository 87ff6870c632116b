"""From a task's texts to token ids: chat templates, beginning and end of sequence."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from tutelage.errors import UserError
from tutelage.tasks.base import Message

UseChat = Literal["auto", "always", "never"]


def encode_prompt(
    tokenizer: Any,
    prompt: str | Sequence[Message],
    add_generation_prompt: bool = True,
    *,
    use_chat: UseChat = "auto",
    encoder_decoder: bool = False,
) -> list[int]:
    """Token ids of a prompt.

    Args:
        tokenizer: a Hugging Face tokenizer.
        prompt: plain text, or chat messages.
        add_generation_prompt: end a chat with the opening of the assistant's turn.
        use_chat: "auto": the chat template for messages, plain text as it is; "always": plain text becomes a user
            message if the tokenizer has a template; "never": messages are an error.
        encoder_decoder: the ids go to an encoder, so keep the end-of-sequence token the tokenizer adds (T5); a decoder
            must not see it, because it continues the prompt.

    Raises:
        UserError: messages without a chat template, or with use_chat="never".
    """
    if isinstance(prompt, str):
        if use_chat != "always" or tokenizer.chat_template is None:
            return _encode_text(tokenizer, prompt, encoder_decoder)
        prompt = [{"role": "user", "content": prompt}]
    elif use_chat == "never":
        raise UserError(
            "use_chat is never, but the task's prompts are chat messages; set use_chat to auto, or give the task a "
            "column of plain text (prompt_column in place of messages_column)"
        )
    if tokenizer.chat_template is None:
        raise UserError(
            f"the prompts are chat messages, but the tokenizer {tokenizer.name_or_path!r} has no chat template; use a "
            "model that has one, or give the task a column of plain text (prompt_column in place of messages_column)"
        )
    messages = [dict(message) for message in prompt]
    ids = tokenizer.apply_chat_template(
        messages, add_generation_prompt=add_generation_prompt, tokenize=True, return_dict=False
    )
    return [int(i) for i in ids]


def encode_completion(tokenizer: Any, text: str) -> list[int]:
    """Token ids of a completion: no beginning-of-sequence token, the end-of-sequence token exactly once, last.

    Raises:
        UserError: the tokenizer has no end-of-sequence token.
    """
    eos = tokenizer.eos_token_id
    if eos is None:
        raise UserError(
            f"the tokenizer {tokenizer.name_or_path!r} has no end-of-sequence token, which ends every completion; set "
            "eos_token in its tokenizer_config.json"
        )
    ids: list[int] = list(tokenizer(text, add_special_tokens=False)["input_ids"])
    while ids and ids[-1] == eos:
        ids.pop()
    return [*ids, eos]


def _encode_text(tokenizer: Any, text: str, encoder_decoder: bool) -> list[int]:
    ids: list[int] = list(tokenizer(text)["input_ids"])
    if encoder_decoder:
        return ids
    eos = tokenizer.eos_token_id
    plain = tokenizer(text, add_special_tokens=False)["input_ids"]
    added = eos is not None and ids[-1:] == [eos] and plain[-1:] != [eos]
    return ids[:-1] if added else ids
