from copy import deepcopy
from functools import cache

import pytest
from tokenizers.processors import TemplateProcessing

from tutelage.errors import UserError
from tutelage.tasks.arithmetic import build_tokenizer
from tutelage.tasks.chat import encode_completion, encode_prompt

TEMPLATE = (
    "{% for m in messages %}<s>{{ m['role'] }}: {{ m['content'] }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<s>assistant:{% endif %}"
)
CHAT = [{"role": "user", "content": "Tom has 12 apples."}]
BOS, EOS = 1, 2
base = cache(build_tokenizer)


def tokenizer(single: str | None = None, chat_template: str | None = None):
    """The arithmetic tokenizer with a rule for special tokens: "<s> $A" as Llama's, "$A </s>" as T5's."""
    built = deepcopy(base())
    if single is not None:
        built.backend_tokenizer.post_processor = TemplateProcessing(
            single=single, special_tokens=[("<s>", BOS), ("</s>", EOS)]
        )
    built.chat_template = chat_template
    return built


def plain(text: str) -> list[int]:
    return base().encode(text)


def test_plain_prompts_follow_the_tokenizers_rule_without_the_end():
    text = "Tom has 12 apples."
    assert encode_prompt(tokenizer(), text) == plain(text)
    assert encode_prompt(tokenizer("<s> $A"), text) == [BOS, *plain(text)]
    assert encode_prompt(tokenizer("$A </s>"), text) == plain(text)
    assert encode_prompt(tokenizer("<s> $A </s>"), text) == [BOS, *plain(text)]


def test_encoder_inputs_keep_the_end():
    text = "Tom has 12 apples."
    assert encode_prompt(tokenizer("$A </s>"), text, encoder_decoder=True) == [*plain(text), EOS]


def test_an_end_the_text_itself_holds_stays():
    assert encode_prompt(tokenizer(), "Tom</s>") == [*plain("Tom"), EOS]


def test_messages_go_through_the_template():
    with_template = tokenizer("<s> $A", TEMPLATE)
    turn = [BOS, *plain("user: Tom has 12 apples."), EOS]
    assert encode_prompt(with_template, CHAT) == [*turn, BOS, *plain("assistant:")]
    assert encode_prompt(with_template, CHAT, add_generation_prompt=False) == turn


def test_plain_prompts_are_wrapped_only_on_request():
    with_template = tokenizer(chat_template=TEMPLATE)
    text = CHAT[0]["content"]
    assert encode_prompt(with_template, text) == plain(text)
    assert encode_prompt(with_template, text, use_chat="never") == plain(text)
    assert encode_prompt(with_template, text, use_chat="always") == encode_prompt(with_template, CHAT)
    assert encode_prompt(tokenizer(), text, use_chat="always") == plain(text)


def test_messages_that_cannot_be_encoded():
    with pytest.raises(UserError, match=r"has no chat template; use a model that has one, or .*prompt_column"):
        encode_prompt(tokenizer(), CHAT)
    with pytest.raises(UserError, match="use_chat is never, but the task's prompts are chat messages"):
        encode_prompt(tokenizer(chat_template=TEMPLATE), CHAT, use_chat="never")


@pytest.mark.parametrize("single", [None, "<s> $A", "$A </s>", "<s> $A </s>"])
def test_completions_end_once_and_have_no_beginning(single):
    expected = [*plain("12 + 7 = 19."), EOS]
    assert encode_completion(tokenizer(single), "12 + 7 = 19.") == expected
    assert encode_completion(tokenizer(single), "12 + 7 = 19.</s>") == expected


def test_completion_without_an_end_token():
    bare = tokenizer()
    bare.eos_token = None
    with pytest.raises(UserError, match="has no end-of-sequence token"):
        encode_completion(bare, "12")
