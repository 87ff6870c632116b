import json
from fractions import Fraction

import pytest

from tutelage.errors import UserError
from tutelage.tasks.calculator import calculator_continuation
from tutelage.tasks.gsm8k import GSM8K, final_number


def row(i: int) -> dict[str, str]:
    return {
        "question": f"Ann has {i} pens and buys 2. How many?",
        "answer": f"{i}+2 = <<{i}+2={i + 2}>>{i + 2}\n#### {i + 2}",
    }


@pytest.fixture
def folder(tmp_path):
    for split, rows in (("train", range(200)), ("test", range(1000, 1003))):
        (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps(row(i)) + "\n" for i in rows))
    return tmp_path


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("so 7.\n#### 18", Fraction(18)),
        ("#### 1,234.", Fraction(1234)),
        ("#### $1,234.50", Fraction(2469, 2)),
        ("####-5", Fraction(-5)),
        ("#### -$5", Fraction(-5)),
        ("#### 18.00", Fraction(18)),
        ("#### 3 #### 4", Fraction(3)),
        ("the answer is 18", None),
        ("#### eighteen", None),
    ],
)
def test_final_number(text, number):
    assert final_number(text) == number


def test_validation_is_carved_off_train_by_the_question(folder):
    task = GSM8K(data=str(folder), validation_fraction=0.2)
    train, validation = ([r["question"] for r in task.examples(split)] for split in ("train", "validation"))
    assert not set(train) & set(validation)
    assert set(train) | set(validation) == {row(i)["question"] for i in range(200)}
    assert 20 <= len(validation) <= 60
    shuffled = [row(i) for i in reversed(range(200))]
    (folder / "train.jsonl").write_text("".join(json.dumps(r) + "\n" for r in shuffled))
    again = GSM8K(data=str(folder), validation_fraction=0.2)
    assert {r["question"] for r in again.examples("validation")} == set(validation)
    assert len(task.examples("test")) == 3


def test_validation_file_replaces_the_carved_split(folder):
    task = GSM8K(data=str(folder), validation_data=str(folder / "test.jsonl"))
    assert task.examples("validation") == task.examples("test")
    assert len(task.examples("train")) == 200


def test_prompt_without_shots(folder):
    task = GSM8K(data=str(folder))
    assert task.prompt(row(5)) == "Question: Ann has 5 pens and buys 2. How many?\nAnswer:\n"
    assert task.reference(row(5)) == "5+2 = <<5+2=7>>7\n#### 7"


def test_shots_come_from_train_and_never_hold_the_question(folder):
    task = GSM8K(data=str(folder), n_shots=3, strip_annotations=True)
    prompt = task.prompt(row(1000))
    assert prompt.count("Question: ") == 4
    assert prompt.endswith("\n\nQuestion: Ann has 1000 pens and buys 2. How many?\nAnswer:\n")
    assert "<<" not in prompt
    train = {r["question"]: r for r in task.examples("train")}
    shots = [block.split("\nAnswer:")[0].removeprefix("Question: ") for block in prompt.split("\n\n")[:3]]
    assert len(set(shots)) == 3
    own = task.prompt(train[shots[0]])
    assert own.count("Question: ") == 4
    assert own.count(shots[0]) == 1
    assert GSM8K(data=str(folder), n_shots=3, shots_seed=1).prompt(row(1000)) != prompt
    assert task.generation.max_prompt_tokens == 512 + 3 * 256


def test_calculator_is_offered_to_evaluation(folder):
    assert GSM8K(data=str(folder)).generation.continuation is calculator_continuation
    assert GSM8K(data=str(folder), calculator=False).generation.continuation is None


def test_scores(folder):
    task = GSM8K(data=str(folder))
    rows = [row(998), row(5), row(5), row(5)]
    scores = task.score(["#### $1,000.", "#### 7.0", "#### 8", "7"], rows)
    assert scores.values == {"accuracy": 50.0, "answered": 75.0}
    assert scores.per_example == (1.0, 1.0, 0.0, 0.0)
    assert scores.resample([0, 1]) == 100.0
    assert task.rewards["accuracy"]("#### $1,000.", row(998)) == 1.0
    assert task.rewards["accuracy"]("#### 8", row(5)) == task.rewards["accuracy"]("7", row(5)) == 0.0


def test_answer_without_number(folder):
    (folder / "test.jsonl").write_text(json.dumps({"question": "How many?", "answer": "seven"}) + "\n")
    with pytest.raises(UserError, match=r"test\.jsonl, line 1: column 'answer' has no number after ####"):
        GSM8K(data=str(folder)).examples("test")


@pytest.mark.parametrize(("kept", "missing"), [("answer", "question"), ("question", "answer")])
def test_columns_have_no_option(folder, kept, missing):
    (folder / "test.jsonl").write_text(json.dumps({kept: row(1)[kept], "text": "?"}) + "\n")
    message = (
        rf"line 1: no column '{missing}'; it has '{kept}', 'text'; call the right one '{missing}' in the data, or use --task\.name "
        r"jsonl with --task\.options\.prompt_column and --task\.options\.completion_column$"
    )
    with pytest.raises(UserError, match=message):
        GSM8K(data=str(folder)).examples("test")


def test_empty_questions_can_be_left_out(folder):
    rows = [row(1), {**row(2), "question": " "}]
    (folder / "test.jsonl").write_text("".join(json.dumps(each) + "\n" for each in rows))
    with pytest.raises(UserError, match=r"line 2: column 'question' is empty; .*\(task\.options\.drop_empty leaves"):
        GSM8K(data=str(folder)).examples("test")
    assert GSM8K(data=str(folder), drop_empty=True).examples("test") == [row(1)]


def test_too_few_rows_for_the_shots(folder):
    task = GSM8K(data=str(folder), n_shots=500)
    with pytest.raises(UserError, match="n_shots is 500, but the train split has"):
        task.prompt(row(1))
    with pytest.raises(UserError, match="n_shots is -1"):
        GSM8K(data=str(folder), n_shots=-1)


def test_own_validation_file_against_the_fraction(folder):
    (folder / "validation.jsonl").write_text(json.dumps(row(1)) + "\n")
    with pytest.raises(UserError, match="has a validation split of its own; set validation_fraction to null"):
        GSM8K(data=str(folder)).examples("train")
    assert len(GSM8K(data=str(folder), validation_fraction=None).examples("validation")) == 1
