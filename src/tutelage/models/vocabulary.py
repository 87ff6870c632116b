"""Do two models speak of the same tokens? Decided by their tokenizers, never by the height of their heads."""

from __future__ import annotations

from tutelage.errors import UserError
from tutelage.models.language_model import LanguageModel


def agree(student: LanguageModel, teacher: LanguageModel) -> int:
    """Checks that both tokenizers give every token the same id and cuts both heads to the shared height.

    Heads of the same tokenizer may differ in height (151,936 against 152,064 rows): the rows past the lower one are
    padding, and both models' softmax leaves them out.

    Returns:
        The shared vocabulary size.

    Raises:
        UserError: the tokenizers differ; names the first differing tokens.
    """
    ours = {i: token for token, i in student.tokenizer.get_vocab().items()}
    theirs = {i: token for token, i in teacher.tokenizer.get_vocab().items()}
    differing = sorted(i for i in ours.keys() | theirs.keys() if ours.get(i) != theirs.get(i))
    if differing:
        shown = "; ".join(f"id {i}: student {ours.get(i)!r}, teacher {theirs.get(i)!r}" for i in differing[:3])
        raise UserError(
            f"student ({student.name}, {len(ours)} tokens) and teacher ({teacher.name}, {len(theirs)} tokens) have different "
            f"tokenizers: {len(differing)} ids differ, the first: {shown}. GKD compares distributions over one vocabulary: "
            "choose a student of the teacher's family, or give both the same tokenizer (student_model.tokenizer)"
        )
    shared = min(student.vocab_size, teacher.vocab_size)
    if max(ours) >= shared:
        raise UserError(
            f"the tokenizer has ids up to {max(ours)}, but the lower head has only {shared} rows (student "
            f"{student.vocab_size}, teacher {teacher.vocab_size}); resize that model's embeddings to the tokenizer"
        )
    student.vocab_size = teacher.vocab_size = shared
    return shared
