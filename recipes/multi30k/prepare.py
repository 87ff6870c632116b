"""Makes the folders that the Multi30k recipes start from: one tokenizer trained on the data, two model configurations.

    python recipes/multi30k/prepare.py --data FOLDER_WITH_train.jsonl --output cache/multi30k

The teacher has 6.3 million parameters, the student 1.0 million. Both have random weights until
`tutelage train recipes/multi30k/teacher.yaml` and `student.yaml` train them.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import MBartConfig, PreTrainedTokenizerFast

VOCABULARY = 6000
SIZES = {
    "teacher": {"d_model": 256, "feed_forward": 768, "layers": 3, "heads": 4},
    "student": {"d_model": 96, "feed_forward": 256, "layers": 2, "heads": 4},
}
MAX_POSITIONS = 128


def train_tokenizer(data: Path) -> PreTrainedTokenizerFast:
    """A unigram tokenizer over both languages; it ends every encoder input with </s>, as T5's does."""
    rows = [json.loads(line) for line in (data / "train.jsonl").read_text(encoding="utf-8").splitlines()]
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    special = ["<pad>", "</s>", "<unk>"]
    trainer = trainers.UnigramTrainer(vocab_size=VOCABULARY, special_tokens=special, unk_token="<unk>")
    tokenizer.train_from_iterator((row[side] for row in rows for side in ("en", "de")), trainer)
    end = tokenizer.token_to_id("</s>")
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", end)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>")


def configuration(
    tokenizer: PreTrainedTokenizerFast, d_model: int, feed_forward: int, layers: int, heads: int
) -> MBartConfig:
    """A pre-norm Transformer with learned positions: docs/LOG.md has the trials against a T5 and a BART."""
    return MBartConfig(
        vocab_size=len(tokenizer),
        d_model=d_model,
        encoder_ffn_dim=feed_forward,
        decoder_ffn_dim=feed_forward,
        encoder_layers=layers,
        decoder_layers=layers,
        encoder_attention_heads=heads,
        decoder_attention_heads=heads,
        max_position_embeddings=MAX_POSITIONS,
        scale_embedding=True,
        init_std=0.04,
        decoder_start_token_id=tokenizer.pad_token_id,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.eos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        forced_eos_token_id=None,
        architectures=["MBartForConditionalGeneration"],
    )


def main() -> None:
    """Writes the folders."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--output", type=Path, default=Path("cache/multi30k"))
    options = parser.parse_args()
    tokenizer = train_tokenizer(options.data)
    for name, size in SIZES.items():
        configuration(tokenizer, **size).save_pretrained(options.output / name)
        tokenizer.save_pretrained(options.output / name)


if __name__ == "__main__":
    main()
