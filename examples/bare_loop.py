"""On-policy distillation in a bare PyTorch loop: the student writes, the teacher marks every token.

python examples/bare_loop.py                                          # a tiny random pair
python examples/bare_loop.py --teacher FOLDER --student FOLDER --learning-rate 1e-5
"""

import torch
from models import QUESTIONS, start
from torch import Tensor

from tutelage.fused import linear_divergence
from tutelage.models.language_model import LanguageModel

NEW_TOKENS = 12


@torch.no_grad()
def write(student: LanguageModel, prompts: list[str]) -> tuple[dict[str, Tensor], Tensor]:
    """Samples completions; returns the models' inputs, and which of the new tokens belong to a completion [B, L]."""
    student.tokenizer.padding_side = "left"  # so that all completions begin in the same column
    batch = student.tokenizer(prompts, padding=True, return_tensors="pt").to(student.device)
    # The student's own distribution, the one that the loss compares, whatever its generation configuration prefers.
    sampling = {"do_sample": True, "top_k": 0, "top_p": 1.0, "temperature": 1.0, "repetition_penalty": 1.0}
    sequences = student.module.generate(**batch, **sampling, max_new_tokens=NEW_TOKENS, pad_token_id=student.pad_id)
    ends = torch.tensor(sorted(student.eos_ids), device=student.device)
    is_end = torch.isin(sequences[:, batch.input_ids.shape[1] :], ends)
    written = is_end.cumsum(1) - is_end.long() == 0  # up to and with the first end of sequence
    mask = torch.cat([batch.attention_mask, written], dim=1)
    positions = (mask.cumsum(1) - 1).clamp(min=0)  # padding on the left must not shift them
    return {"input_ids": sequences, "attention_mask": mask, "position_ids": positions}, written


def loss(student: LanguageModel, teacher: LanguageModel, inputs: dict[str, Tensor], written: Tensor) -> Tensor:
    """Mean over the written tokens of KL(student || teacher)."""
    columns = slice(-written.shape[1] - 1, -1)  # the state at a token predicts the next one
    hidden = student.decoder(**inputs, use_cache=False).last_hidden_state[:, columns][written]
    with torch.no_grad():
        teacher_hidden = teacher.decoder(**inputs, use_cache=False).last_hidden_state[:, columns][written]
    weights = torch.full((len(hidden),), 1 / len(hidden), device=student.device)
    return linear_divergence(hidden, student.head, teacher_hidden, teacher.head, "reverse_kl", weights)


def main(arguments: list[str] | None = None) -> list[float]:
    options, teacher, student = start(__doc__, arguments)
    optimiser = torch.optim.AdamW(student.module.parameters(), lr=options.learning_rate)
    student.module.eval()  # no dropout
    values = []
    for step in range(options.steps):
        value = loss(student, teacher, *write(student, list(QUESTIONS)))
        value.backward()
        optimiser.step()
        optimiser.zero_grad()
        values.append(value.item())
        print(f"step {step + 1:3}  reverse KL {values[-1]:.4f} nats a token")
    return values


if __name__ == "__main__":
    main()
