"""Makes the folders that the arithmetic recipes start from: the task's tokenizer and two model configurations.

    python recipes/arithmetic/prepare.py --output cache/arithmetic

The teacher has 1.3 million parameters, the student 0.4 million; both are random until `teacher.yaml` and
`student.yaml` train them.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from transformers import LlamaConfig

from tutelage.tasks.arithmetic import build_tokenizer

SIZES = {
    "teacher": {"hidden_size": 160, "intermediate_size": 448, "num_hidden_layers": 4, "num_attention_heads": 5},
    "student": {"hidden_size": 96, "intermediate_size": 256, "num_hidden_layers": 3, "num_attention_heads": 4},
}


def main() -> None:
    """Writes the folders."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("cache/arithmetic"))
    options = parser.parse_args()
    tokenizer = build_tokenizer()
    for name, size in SIZES.items():
        config = LlamaConfig(
            vocab_size=len(tokenizer),
            max_position_embeddings=256,
            tie_word_embeddings=True,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            architectures=["LlamaForCausalLM"],
            **size,
        )
        config.save_pretrained(options.output / name)
        tokenizer.save_pretrained(options.output / name)


if __name__ == "__main__":
    main()
