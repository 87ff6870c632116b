import re

import pytest
from transformers import AutoTokenizer

from tutelage.errors import UserError
from tutelage.tasks.arithmetic import Arithmetic, build_tokenizer, final_number, split_of


@pytest.fixture(scope="module")
def tokenizer():
    return build_tokenizer()


def computation(answer: str) -> str:
    return answer.partition(" #### ")[0]


def test_worked_answers_are_right_and_follow_from_the_question():
    for level in ("easy", "medium", "hard"):
        task = Arithmetic(level=level, train_size=300)
        low, high = task.steps
        for example in task.examples("train"):
            equations = re.findall(r"(\d+) ([-+*/]) (\d+) = (\d+)", example["answer"])
            assert low <= len(equations) <= high
            for left, sign, right, result in equations:
                exact = {"+": int(left) + int(right), "-": int(left) - int(right), "*": int(left) * int(right)}
                exact["/"] = int(left) / int(right)
                assert exact[sign] == int(result)
                assert 1 <= int(result) <= 999
            assert example["result"] == int(equations[-1][3])
            assert final_number(example["answer"]) == example["result"]
            assert int(re.search(r"\d+", example["question"]).group()) in [
                int(n) for e in equations for n in (e[0], e[2])
            ]


def test_every_equation_uses_a_number_the_story_has_at_that_point():
    for example in Arithmetic(train_size=500).examples("train"):
        known = {int(n) for n in re.findall(r"\d+", example["question"])} | {2}  # "half" is a division by 2
        for left, _, right, result in re.findall(r"(\d+) ([-+*/]) (\d+) = (\d+)", example["answer"]):
            assert {int(left), int(right)} <= known
            known.add(int(result))


def test_first_problem_is_fixed():
    example = Arithmetic().examples("train")[0]
    assert example["question"] == (
        "Leo has 21 stamps. A machine turns each one into 5. He finds 2 stamps. How many stamps does Leo have now?"
    )
    assert example["answer"] == "21 * 5 = 105. 105 + 2 = 107. #### 107"


def test_splits_share_no_computation_whatever_the_seed():
    content = {
        split: {
            computation(example["answer"])
            for seed in (0, 1)
            for example in Arithmetic(seed=seed, train_size=3000, level="easy").examples(split)
        }
        for split in ("train", "validation", "test")
    }
    assert all(len(computations) > 200 for computations in content.values())
    assert not content["train"] & content["validation"]
    assert not content["train"] & content["test"]
    assert not content["validation"] & content["test"]


def test_split_ignores_names_and_wording():
    problems = Arithmetic(train_size=3000, level="easy").examples("train")
    by_content: dict[str, set[str]] = {}
    for index in range(len(problems)):
        problem = problems.problem(index)
        by_content.setdefault(problem.content, set()).add(problem.question)
        assert split_of(problem) == "train"
    assert any(len(questions) > 1 for questions in by_content.values())


def test_problems_depend_on_seed_and_index_alone():
    short, long = Arithmetic(train_size=5).examples("train"), Arithmetic(train_size=5_000_000).examples("train")
    assert list(short) == list(long[:5])
    assert long[4_999_999] == long[-1]
    assert long[-1] == Arithmetic(train_size=5_000_000).examples("train")[-1]
    assert list(short) != list(Arithmetic(seed=1, train_size=5).examples("train"))
    assert len(long) == 5_000_000
    with pytest.raises(IndexError):
        short[5]


def test_scores():
    example = {"question": "", "answer": "12 + 7 = 19. 19 - 4 = 15. #### 15", "result": 15}
    completions = [
        "12 + 7 = 19. 19 - 4 = 15. #### 15",  # right
        "12 + 7 = 18. 19 - 4 = 15. #### 15",  # right number, one wrong step
        "12 + 7 = 19. 19 - 4 = 16. #### 16",  # wrong number, one right step
        "15",  # nothing after ####
    ]
    scores = Arithmetic().score(completions, [example] * 4)
    assert scores.values == {"accuracy": 50.0, "valid_format": 75.0, "step_accuracy": 50.0}
    assert scores.per_example == (1.0, 1.0, 0.0, 0.0)
    assert scores.resample([0, 0, 1, 3]) == 75.0
    assert [Arithmetic().rewards["accuracy"](text, example) for text in completions] == [1.0, 1.0, 0.0, 0.0]
    with pytest.raises(ValueError, match="1 completions for 2 examples"):
        Arithmetic().score(["15"], [example] * 2)


def test_tokenizer_round_trip(tokenizer):
    texts = ["Hello,  world!\n\t<<3+4=7>>7 {~}", "antidisestablishmentarianism" * 30]
    for example in Arithmetic(seed=5, train_size=200).examples("train"):
        texts += [example["question"], example["answer"]]
    for text in texts:
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == text
        assert tokenizer.unk_token_id not in ids


def test_tokenizer_splits_digits_and_keeps_words_whole(tokenizer):
    assert len(tokenizer) <= 300
    tokens = tokenizer.convert_ids_to_tokens(tokenizer.encode("Tom has 123 apples. #### 45"))
    assert tokens == ["Tom", "Ġhas", "Ġ1", "2", "3", "Ġapples", ".", "Ġ####", "Ġ4", "5"]
    assert [tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id] == [0, 1, 2]


def test_tokenizer_is_deterministic_and_survives_saving(tokenizer, tmp_path):
    assert build_tokenizer().get_vocab() == tokenizer.get_vocab()
    tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    text = "Tom has 12 apples , and more."
    assert loaded.encode(text) == tokenizer.encode(text)
    assert loaded.decode(loaded.encode(text)) == text
    assert (loaded.pad_token, loaded.bos_token, loaded.eos_token) == ("<pad>", "<s>", "</s>")


@pytest.mark.parametrize("level", ["easy", "medium", "hard"])
def test_problems_fit_the_generation_limits(tokenizer, level):
    task = Arithmetic(level=level, train_size=1000)
    for example in task.examples("train"):
        assert len(tokenizer.encode(example["question"])) <= task.generation.max_prompt_tokens
        assert len(tokenizer.encode(example["answer"])) + 1 <= task.generation.max_new_tokens


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"data": "x.jsonl"}, "reads no data, but task.data is 'x.jsonl'"),
        ({"level": "brutal"}, "level is 'brutal'; it must be one of easy, medium, hard"),
        ({"steps": (3, 2)}, r"steps is \(3, 2\)"),
        ({"steps": (1, 2, 3)}, "fewest and most equations"),
        ({"largest_operand": 1}, "largest_operand is 1; it must be between 2 and 400"),
        ({"test_size": 0}, "test_size is 0; it must be at least 1"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(UserError, match=message):
        Arithmetic(**options)


def test_unknown_split():
    with pytest.raises(UserError, match="split is 'dev'; it must be one of train, validation, test"):
        Arithmetic().examples("dev")
