"""Makes the folders that the Multi30k recipes start from: one tokenizer trained on the data, two model configurations.

    python recipes/multi30k/prepare.py --data FOLDER_WITH_train.jsonl --output cache/multi30k

The teacher is a T5 of about 7 million parameters, the student one of about 1.3 million. Both have random weights until
`tutelage train recipes/multi30k/teacher.yaml` and `student.yaml` train them.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast, T5Config

VOCABULARY = 6000
SIZES = {
    "teacher": {"d_model": 256, "d_ff": 768, "num_layers": 3, "num_decoder_layers": 3, "num_heads": 4, "d_kv": 64},
    "student": {"d_model": 96, "d_ff": 256, "num_layers": 2, "num_decoder_layers": 2, "num_heads": 3, "d_kv": 32},
}


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


def main() -> None:
    """Writes the folders."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--output", type=Path, default=Path("cache/multi30k"))
    options = parser.parse_args()
    tokenizer = train_tokenizer(options.data)
    for name, size in SIZES.items():
        config = T5Config(
            vocab_size=len(tokenizer),
            feed_forward_proj="gated-gelu",
            tie_word_embeddings=True,
            dropout_rate=0.1,
            decoder_start_token_id=tokenizer.pad_token_id,
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=tokenizer.eos_token_id,
            architectures=["T5ForConditionalGeneration"],
            **size,
        )
        config.save_pretrained(options.output / name)
        tokenizer.save_pretrained(options.output / name)


if __name__ == "__main__":
    main()
