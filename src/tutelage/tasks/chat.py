"""From a task's texts to token ids: chat templates, beginning and end of sequence, the end of the assistant's turn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from tutelage.errors import UserError
from tutelage.tasks.base import Message

UseChat = Literal["auto", "always", "never"]

# Stands for the assistant's reply where a template is only asked what it writes behind one.
_REPLY = "the-reply"


@dataclass(frozen=True)
class EndOfTurn:
    """How a chat template closes the assistant's turn.

    Attributes:
        gap: what it writes between the reply and the token; mostly nothing.
        token_id: the special token that ends the turn: <|im_end|>, <|eot_id|>, <end_of_turn>, ...
    """

    gap: str
    token_id: int


def end_of_turn(tokenizer: Any) -> EndOfTurn | None:
    """What follows a reply in the tokenizer's chat template, up to the first special token.

    That token need not be the tokenizer's end of sequence: Llama 3 closes turns with <|eot_id|>, Qwen's base models with
    <|im_end|>. What a template writes behind it (a line break, an end of text) is never generated.

    Returns:
        None where the tokenizer has no template, or one that closes turns without a special token: the end-of-sequence
        token is all that can end a completion then.

    Raises:
        UserError: the template cannot render a user's message with a reply.
    """
    from jinja2 import TemplateError

    if tokenizer.chat_template is None:
        return None
    turns = [{"role": "user", "content": "a question"}, {"role": "assistant", "content": _REPLY}]
    try:
        rendered: str = tokenizer.apply_chat_template(turns, tokenize=False)
    except TemplateError as error:
        raise UserError(
            f"the chat template of the tokenizer {tokenizer.name_or_path!r} cannot render a user's message with a reply "
            f"({error}); repair it, or set task.use_chat to never where the prompts are plain text"
        ) from error
    _, found, behind = rendered.rpartition(_REPLY)
    if not found:
        raise UserError(
            f"the chat template of the tokenizer {tokenizer.name_or_path!r} leaves the assistant's reply out; repair it, or "
            "set task.use_chat to never where the prompts are plain text"
        )
    special = {token.content: i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    # Where two start at the same place, the longer one is the token.
    places = [(behind.index(text), -len(text), text) for text in special if text in behind]
    if not places:
        return None
    place, _, text = min(places)
    return EndOfTurn(behind[:place], special[text])


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
            message; "never": messages are an error.
        encoder_decoder: the ids go to an encoder, so keep the end-of-sequence token the tokenizer adds (T5); a decoder
            must not see it, because it continues the prompt.

    Raises:
        UserError: messages with use_chat="never"; messages, or use_chat="always", without a chat template.
    """
    check_template(tokenizer, use_chat)
    if isinstance(prompt, str):
        if not is_chat(prompt, use_chat):
            return _encode_texts(tokenizer, [prompt], encoder_decoder)[0]
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


def encode_prompts(
    tokenizer: Any, prompts: Sequence[str | Sequence[Message]], *, use_chat: UseChat, encoder_decoder: bool
) -> list[list[int]]:
    """`encode_prompt` of each, plain texts all in one call of the tokenizer, which is several times quicker."""
    plain = [prompt for prompt in prompts if isinstance(prompt, str) and not is_chat(prompt, use_chat)]
    encoded = iter(_encode_texts(tokenizer, plain, encoder_decoder))
    return [
        encode_prompt(tokenizer, prompt, use_chat=use_chat, encoder_decoder=encoder_decoder)
        if is_chat(prompt, use_chat)
        else next(encoded)
        for prompt in prompts
    ]


def check_template(tokenizer: Any, use_chat: UseChat) -> None:
    """Raises UserError when every prompt is to go into the chat template of a tokenizer that has none."""
    if use_chat == "always" and tokenizer.chat_template is None:
        raise UserError(
            f"task.use_chat is always, but the tokenizer {tokenizer.name_or_path!r} has no chat template; use a model whose "
            "tokenizer has one, or set task.use_chat to auto or never, which leave plain text as it is"
        )


def is_chat(prompt: str | Sequence[Message], use_chat: UseChat) -> bool:
    """Whether `encode_prompt` puts this prompt into the chat template."""
    return not isinstance(prompt, str) or use_chat == "always"


def encode_completion(tokenizer: Any, text: str, end: EndOfTurn | None = None) -> list[int]:
    """Token ids of a completion: no beginning-of-sequence token, the token that ends it exactly once, last.

    Args:
        tokenizer: a Hugging Face tokenizer.
        text: the completion.
        end: how a chat's turn ends; None: with the end-of-sequence token.

    Raises:
        UserError: the tokenizer has no end-of-sequence token, and none ends the turn.
    """
    return encode_completions(tokenizer, [text], [end])[0]


def encode_completions(tokenizer: Any, texts: Sequence[str], ends: Sequence[EndOfTurn | None]) -> list[list[int]]:
    """`encode_completion` of each text with its end, in one call of the tokenizer."""
    gapped = [text + ("" if end is None else end.gap) for text, end in zip(texts, ends, strict=True)]
    return [
        _ended(ids, _last_token(tokenizer, end))
        for ids, end in zip(_ids(tokenizer, gapped, add_special_tokens=False), ends, strict=True)
    ]


def _last_token(tokenizer: Any, end: EndOfTurn | None) -> int:
    last: int | None = tokenizer.eos_token_id if end is None else end.token_id
    if last is None:
        raise UserError(
            f"the tokenizer {tokenizer.name_or_path!r} has no end-of-sequence token, which ends every completion; set "
            "eos_token in its tokenizer_config.json"
        )
    return last


def _ended(ids: list[int], last: int) -> list[int]:
    while ids and ids[-1] == last:
        ids.pop()
    return [*ids, last]


def _encode_texts(tokenizer: Any, texts: Sequence[str], encoder_decoder: bool) -> list[list[int]]:
    encoded = _ids(tokenizer, texts)
    eos = tokenizer.eos_token_id
    if encoder_decoder or eos is None:
        return encoded
    ending = [place for place, ids in enumerate(encoded) if ids[-1:] == [eos]]
    written = _ids(tokenizer, [texts[place] for place in ending], add_special_tokens=False)
    for place, ids in zip(ending, written, strict=True):
        if ids[-1:] != [eos]:  # the tokenizer has added it, and a decoder must not see it: it continues the prompt
            encoded[place].pop()
    return encoded


def _ids(tokenizer: Any, texts: Sequence[str], **options: bool) -> list[list[int]]:
    return [list(ids) for ids in tokenizer(list(texts), **options)["input_ids"]] if texts else []
