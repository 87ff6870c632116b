from copy import deepcopy
from functools import cache

import pytest
from tokenizers.processors import TemplateProcessing

from tutelage.errors import UserError
from tutelage.tasks.arithmetic import build_tokenizer
from tutelage.tasks.chat import (
    EndOfTurn,
    encode_completion,
    encode_completions,
    encode_prompt,
    encode_prompts,
    end_of_turn,
)

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


def test_messages_that_cannot_be_encoded():
    with pytest.raises(UserError, match=r"has no chat template; use a model that has one, or .*prompt_column"):
        encode_prompt(tokenizer(), CHAT)
    with pytest.raises(UserError, match="use_chat is never, but the task's prompts are chat messages"):
        encode_prompt(tokenizer(chat_template=TEMPLATE), CHAT, use_chat="never")
    always = (
        r"task\.use_chat is always, but the tokenizer .* has no chat template; .* set task\.use_chat to auto or never"
    )
    for prompt in (CHAT[0]["content"], CHAT):
        with pytest.raises(UserError, match=always):
            encode_prompt(tokenizer(), prompt, use_chat="always")


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


IM_END, EOT, END = 226, 227, 228  # added to the arithmetic tokenizer's 226 tokens
TURNS = (
    "{% for m in messages %}<s>{{ m['role'] }}:{{ m['content'] }}CLOSING{% endfor %}"
    "{% if add_generation_prompt %}<s>assistant:{% endif %}"
)


def chat_tokenizer(closing: str):
    """A tokenizer whose template closes every turn with `closing`, and whose end of sequence is </s> all the same."""
    built = tokenizer("<s> $A", TURNS.replace("CLOSING", closing))
    built.add_tokens(["<|im_end|>", "<|eot_id|>", "<|eot_id|>x"], special_tokens=True)
    return built


@pytest.mark.parametrize(
    ("closing", "expected"),
    [
        ("<|im_end|>\n", EndOfTurn("", IM_END)),  # ChatML: the line break is not the assistant's
        ("<|eot_id|>", EndOfTurn("", EOT)),
        ("<|eot_id|>x", EndOfTurn("", END)),  # the longer of two tokens that start at one place
        (" </s>", EndOfTurn(" ", EOS)),
        ("\n<|im_end|>\n</s>", EndOfTurn("\n", IM_END)),  # the first of several
        ("\n", None),  # nothing that could end a completion
    ],
)
def test_end_of_turn_is_the_first_special_token_behind_the_reply(closing, expected):
    assert end_of_turn(chat_tokenizer(closing)) == expected


def test_without_a_template_there_is_no_end_of_turn():
    assert end_of_turn(tokenizer()) is None


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{ raise_exception('roles must be human and bot') }}", r"cannot render .* \(roles must be human and bot\).*use_chat to never"),
        ("{{ messages[0]['content'] }}", r"leaves the assistant's reply out; repair it"),
    ],
)  # fmt: skip
def test_templates_that_do_not_show_how_a_turn_ends(template, message):
    with pytest.raises(UserError, match=message):
        end_of_turn(tokenizer(chat_template=template))


@pytest.mark.parametrize(
    "closing", ["<|im_end|>", "<|im_end|>\n", "<|eot_id|>", " <|eot_id|>", "\n<|im_end|>\n</s>", "</s>"]
)
def test_prompt_and_completion_are_the_rendered_conversation(closing):
    chat = chat_tokenizer(closing)
    end = end_of_turn(chat)
    completion = encode_completion(chat, "12 + 7 = 19.", end)
    whole = [*CHAT, {"role": "assistant", "content": "12 + 7 = 19."}]
    rendered = chat.apply_chat_template(whole, tokenize=True, return_dict=False)
    ours = [*encode_prompt(chat, CHAT), *completion]
    assert rendered[: len(ours)] == ours
    assert end.token_id not in rendered[len(ours) :]
    assert completion.count(end.token_id) == 1


def test_an_end_of_turn_the_text_holds_already_is_not_doubled():
    chat = chat_tokenizer("<|im_end|>\n")
    expected = [*plain("12"), IM_END]
    assert encode_completion(chat, "12", end_of_turn(chat)) == expected
    assert encode_completion(chat, "12<|im_end|>", end_of_turn(chat)) == expected
    assert encode_completion(chat, "12") == [*plain("12"), EOS]  # of a plain prompt


def test_a_turn_can_end_without_an_end_of_sequence():
    chat = chat_tokenizer("<|eot_id|>")
    chat.eos_token = None
    assert encode_completion(chat, "12", end_of_turn(chat)) == [*plain("12"), EOT]


@pytest.mark.parametrize("single", ["$A", "<s> $A", "$A </s>", "<s> $A </s>"])
@pytest.mark.parametrize("encoder_decoder", [False, True])
def test_many_at_once_are_those_one_by_one(single: str, encoder_decoder: bool) -> None:
    chat = tokenizer(single, chat_template=TEMPLATE)
    prompts = ["Tom has 3", CHAT, "Tom</s>", "12", CHAT]
    for use_chat in ("auto", "always"):
        options = {"use_chat": use_chat, "encoder_decoder": encoder_decoder}
        assert encode_prompts(chat, prompts, **options) == [
            encode_prompt(chat, prompt, **options) for prompt in prompts
        ]
    ends = [None, EndOfTurn("", BOS), EndOfTurn(" ", EOS)]
    texts = ["12", "7</s>", "19"]
    assert encode_completions(chat, texts, ends) == [
        encode_completion(chat, text, end) for text, end in zip(texts, ends, strict=True)
    ]
    assert encode_prompts(chat, [], use_chat="auto", encoder_decoder=encoder_decoder) == []
