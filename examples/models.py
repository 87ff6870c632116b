"""Where the examples get their models: two folders, or a tiny random pair made on the spot."""

import argparse

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from tutelage.models.language_model import LanguageModel
from tutelage.models.vocabulary import agree
from tutelage.tasks.arithmetic import build_tokenizer

QUESTIONS = tuple(f"{name} has {n} pens and buys {n + 2}. How many pens?" for name in ("Tom", "Ana") for n in range(8))


def start(doc: str | None, arguments: list[str] | None) -> tuple[argparse.Namespace, LanguageModel, LanguageModel]:
    """The options of both examples, teacher and student, on the GPU where there is one."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", help="Hugging Face folder or hub name; without it, a tiny random model")
    parser.add_argument("--student", help="the same, of the same tokenizer")
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--learning-rate", type=float, default=1e-2, help="1e-5 suits pretrained models")
    options = parser.parse_args(arguments)
    if (options.teacher is None) != (options.student is None):
        parser.error("give both --teacher and --student, or neither")
    torch.manual_seed(0)
    teacher = _pretrained(options.teacher) if options.teacher else _tiny("teacher", layers=2, spread=0.2)
    student = _pretrained(options.student) if options.student else _tiny("student", layers=1, spread=0.02)
    agree(student, teacher)  # the same tokens have the same ids
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    teacher.module.eval().requires_grad_(False).to(device)
    student.module.to(device)
    return options, teacher, student


def _pretrained(name: str) -> LanguageModel:
    # float32: bfloat16 weights round small updates away. LanguageModel finds the head with its scale and soft-cap.
    module = AutoModelForCausalLM.from_pretrained(name, dtype=torch.float32)
    return LanguageModel(module, AutoTokenizer.from_pretrained(name), name)


def _tiny(name: str, layers: int, spread: float) -> LanguageModel:
    tokenizer = build_tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=layers, num_attention_heads=2,
        max_position_embeddings=128, initializer_range=spread,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    return LanguageModel(LlamaForCausalLM(config), tokenizer, name)
