"""Dropout rates and attention implementations, in the configuration."""

import pytest

from tests.conftest import build_config
from tutelage.errors import UserError
from tutelage.models.configs import attention_for, set_dropout


@pytest.mark.parametrize(
    ("family", "fields"),
    [
        ("gpt2", {"resid_pdrop", "embd_pdrop", "attn_pdrop"}),
        ("llama", {"attention_dropout"}),
        ("t5", {"dropout_rate"}),
        ("bart", {"dropout", "attention_dropout", "activation_dropout"}),
    ],
)
def test_set_dropout(family, fields):
    config = build_config(family)
    before = config.to_dict()
    set_dropout(config, 0.37)
    after = config.to_dict()
    assert {name for name in after if after[name] != before[name]} == fields
    assert {after[name] for name in fields} == {0.37}


def test_attention_for():
    assert attention_for(build_config("llama"), None) is None
    assert attention_for(build_config("llama"), "sdpa") == "sdpa"
    gemma = build_config("gemma2")
    assert attention_for(gemma, None) == "eager"
    assert attention_for(gemma, "flash_attention_2") == "flash_attention_2"
    with pytest.raises(UserError, match="sdpa leaves out the attention soft-cap"):
        attention_for(gemma, "sdpa")
    gemma.attn_logit_softcapping = None
    assert attention_for(gemma, "sdpa") == "sdpa"
