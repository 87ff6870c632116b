"""The recipes of the paper's set-ups and of the larger tasks: every one resolves, and goes two steps on rows of its schema.

The hub is replaced by a few rows with the columns of the real data sets.
"""

from __future__ import annotations

import math
import re
import shlex
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
import transformers

from tests.conftest import build_module, tokenizer
from tutelage import cli_options
from tutelage.cli import train_config
from tutelage.eval.request import EvalRequest
from tutelage.train import config_io
from tutelage.train.config import Config
from tutelage.train.loop import train
from tutelage.train.methods import resolve
from tutelage.train.setup import prepare

ROOT = Path(__file__).parents[2]
PAPER = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "recipes" / "paper").rglob("*.yaml"))
RECIPES = [*PAPER, "recipes/aeslc.yaml", "recipes/t0_mixture.yaml"]

# task: (steps, batch, learning rate, warm-up, new tokens, the divergence found best)
PUBLISHED = {
    "xsum": (40_000, 32, 3e-4, 2_000, 64, "jsd(0.9)"),
    "wmt14": (100_000, 32, 3e-4, 5_000, 80, "jsd(0.1)"),
    "gsm8k": (40_000, 32, 3e-4, 2_000, 320, "forward_kl"),
    "flan": (50_000, 128, 1e-4, 2_000, 256, "reverse_kl"),
}

TEXTS = ["Tom has 12 apples.", "Ann buys 5 more.", "Sam sells 4 cards.", "Leo finds 8 coins.", "Mia wins 7 beads."] * 2
NUMBERED = [f"{text} Then he gets {n} more." for n, text in enumerate(TEXTS)]
TOO_LONG = "Tom has 12 apples. " * 250
ANSWER = "12 + 5 = 17. #### 17"
HUB: dict[tuple[str, str | None, str | None], list[dict[str, Any]]] = {
    ("EdinburghNLP/xsum", None, "refs/convert/parquet"): [
        {"document": text, "summary": "Tom buys 5 apples.", "id": str(n)}
        for n, text in enumerate([*NUMBERED, TOO_LONG])
    ],
    ("wmt/wmt14", "de-en", None): [
        {"translation": {"de": target, "en": text}}
        for text, target in [*((text, "Tom has 7.") for text in NUMBERED), ("Ann buys 5 more.", "")]
    ],
    ("openai/gsm8k", "main", None): [{"question": text, "answer": ANSWER} for text in NUMBERED],
    ("Muennighoff/flan", None, None): [
        {"inputs": text, "targets": answer, "task": "arithmetic"}
        for text, answer in [*((text, "17") for text in NUMBERED), ("Ann buys 5 more.", " ")]
    ],
}
FILES = {
    "aeslc": [{"body": text, "subject": "Tom buys apples", "annotations": ["apples"]} for text in NUMBERED],
    "t0_mixture": [{"prompt": text, "completion": "17"} for text in NUMBERED] + [{"prompt": "Tom", "completion": ""}],
}
CHAT = (
    "{% for m in messages %}<s>{{ m['role'] }}: {{ m['content'] }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<s>assistant:{% endif %}"
)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A student and a teacher of T5 v1.1 and of Llama, and a scorer of entailment."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("models")
    spoken = deepcopy(tokenizer())
    spoken.chat_template = CHAT
    for family in ("t5_v1_1", "llama"):
        for seed, (role, hidden) in enumerate({"student": 16, "teacher": 32}.items()):
            module = build_module(family, seed=seed, dtype=torch.float32, vocab=len(spoken), hidden=hidden)
            if family == "llama":
                module.config.max_position_embeddings = 1024  # positions are computed: no weight depends on it
            module.save_pretrained(folder / f"{role}-{family}")
            spoken.save_pretrained(folder / f"{role}-{family}")
    labels = {0: "CONTRADICTION", 1: "NEUTRAL", 2: "ENTAILMENT"}
    scorer = transformers.BertConfig(
        vocab_size=len(spoken), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
        id2label=labels, label2id={label: n for n, label in labels.items()}, pad_token_id=0,
    )  # fmt: skip
    transformers.BertForSequenceClassification(scorer).save_pretrained(folder / "scorer")
    tokenizer().save_pretrained(folder / "scorer")
    return folder


@pytest.fixture(autouse=True)
def hub(monkeypatch: pytest.MonkeyPatch) -> None:
    """The hub's data sets as rows of their columns; GSM8K has no validation split."""

    def load(name: str, config: str | None, revision: str | None) -> datasets.DatasetDict:
        rows = datasets.Dataset.from_list(HUB[name, config, revision])
        splits = ("train", "test") if name == "openai/gsm8k" else ("train", "validation", "test")
        return datasets.DatasetDict(dict.fromkeys(splits, rows))

    monkeypatch.setattr(datasets, "load_dataset", load)
    monkeypatch.chdir(ROOT)


def small(recipe: str, models: Path, folder: Path) -> Config:
    """The recipe with tiny models and two steps; all else is its own."""
    raw = config_io.load_yaml(ROOT / recipe)
    family = "t5_v1_1" if recipe in PAPER else "llama"
    changes: dict[str, Any] = {
        "student": str(models / f"student-{family}"),
        "output": str(folder / "run"),
        "rollout": {"max_new_tokens": 6},
        "train": {"steps": 2, "batch_size": 4, "warmup_steps": 1, "device": "cpu"},
        "log": {"progress": False},
    }
    if raw["method"] != "sft":
        changes["teacher"] = str(models / f"teacher-{family}")
    if "teacher_model" in raw:
        changes["teacher_model"] = {"dtype": "float32"}
    if raw["method"] == "rl_gkd":
        changes["rl"] = {"reward": f"scorer:{models / 'scorer'}"}
    if recipe not in PAPER:
        data = folder / "data"
        data.mkdir()
        for split in ("train", "validation"):
            datasets.Dataset.from_list(FILES[Path(recipe).stem]).to_json(data / f"{split}.jsonl")
        changes["task"] = {"data": str(data)}
        changes["student_model"] = {"dtype": "float32"}
    return config_io.build(config_io.deep_merge(raw, changes))


@pytest.mark.parametrize("recipe", RECIPES)
def test_dry_run(recipe: str, models: Path, tmp_path: Path) -> None:
    config = small(recipe, models, tmp_path)
    parts, _ = prepare(config)
    before = [parameter.detach().clone() for parameter in parts.student.parameters()]
    history = train(parts, config)
    parts.log.close()

    assert [record["step"] for record in history.records] == [1, 2]
    assert all(math.isfinite(record["loss"]) for record in history.records)
    assert any(not torch.equal(old, new) for old, new in zip(before, parts.student.parameters(), strict=True))
    # Ten good rows each: the empty and the long ones are left out, and of GSM8K's questions one is held out for validation.
    assert len(parts.source.stream.prompts) == (9 if config.task.name == "gsm8k" else 10)
    assert len(parts.held_out) == (0 if config.eval.final == "none" else 10)
    assert (parts.rewarder is not None) == (config.method == "rl_gkd")
    if parts.rewarder is not None:
        assert all(0 < record["reward"] < 1 for record in history.records)


@pytest.mark.parametrize("recipe", PAPER)
def test_the_papers_hyperparameters(recipe: str) -> None:
    config = config_io.build(config_io.load_yaml(ROOT / recipe))
    task, family = Path(recipe).parent.name, Path(recipe).stem
    steps, batch, rate, warmup, new_tokens, best = PUBLISHED[task]
    assert (config.train.steps, config.train.batch_size, config.train.learning_rate) == (steps, batch, rate)
    assert (config.train.warmup_steps, config.train.optimizer) == (warmup, "adafactor")
    assert config.rollout.max_new_tokens == new_tokens
    objective = resolve(config)
    expected = {
        "sft": (None, 0.0),
        "supervised_kd": ("forward_kl", 0.0),
        "gkd": (best, 1.0),
        "rl_gkd": ("jsd(0.9)", 1.0),
    }
    divergence = None if objective.divergence is None else str(objective.divergence)
    assert (divergence, objective.student_data_fraction) == expected[family]
    assert config.loss.normalisation == ("token" if family == "sft" else "sequence")
    assert config.output == Path("runs/paper") / task / ("student" if family == "sft" else family)


def test_every_task_has_its_methods() -> None:
    families = {task: {Path(r).stem for r in PAPER if Path(r).parent.name == task} for task in PUBLISHED}
    common = {"sft", "supervised_kd", "gkd"}
    assert families == {task: common | ({"rl_gkd"} if task == "xsum" else set()) for task in PUBLISHED}


def remarks(path: str) -> str:
    """The comment at the head of a recipe, continued lines joined; all of a Markdown file."""
    text = (ROOT / path).read_text(encoding="utf-8")
    if path.endswith(".yaml"):
        text = "\n".join(line[1:] for line in text.splitlines() if line.startswith("#"))
    return re.sub(r" *\\\n *", " ", text)


def spelled() -> Iterator[tuple[str, ...]]:
    """Every `tutelage train ...`, and every option on a line of its own (two spaces end it), that a remark names."""
    for path in (*RECIPES, "recipes/README.md"):
        text = remarks(path)
        for command in re.findall(r"tutelage train (recipes/[^`\n]+?)(?: {2,}|`|$)", text, re.MULTILINE):
            yield tuple(shlex.split(command))
        for options in re.findall(r"^ +(--.+?)(?: {2,}|$)", text, re.MULTILINE):
            yield (path, *shlex.split(options))


@pytest.mark.parametrize("arguments", list(dict.fromkeys(spelled())), ids=" ".join)
def test_commands_and_options_in_remarks(arguments: tuple[str, ...]) -> None:
    recipe, *options = arguments
    raw = config_io.load_yaml(ROOT / recipe)
    keys = [option.removeprefix("--").replace("-", "_") for option in options[::2]]
    values = [None if value == "None" else value for value in options[1::2]]
    given = dict(zip(keys, values, strict=True))
    # As the command line does it, without the fraction of a second that its parser takes to build.
    config = config_io.build(config_io.deep_merge(raw, config_io.nest(given)))
    for key in ("method", "divergence", "student"):
        if key in given:
            assert getattr(config, key) == given[key]
    assert given.get("output", raw["output"]) == str(config.output)


def test_on_the_command_line() -> None:
    config = train_config(["recipes/aeslc.yaml", "--method", "sft", "--teacher", "None", "--divergence", "None"])
    assert (config.method, config.teacher, config.divergence) == ("sft", None, None)
    assert config.task.options["summary_column"] == "subject"


@pytest.mark.parametrize("fraction", [0.0, 0.25, 0.5, 0.75])
@pytest.mark.parametrize("task", ["flan", "gsm8k", "wmt14", "xsum"])
def test_the_sweep_over_the_share_of_student_data(task: str, fraction: float) -> None:
    raw = config_io.load_yaml(Path(f"recipes/paper/{task}/gkd.yaml")) | {"student_data_fraction": fraction}
    assert resolve(config_io.build(raw)).student_data_fraction == fraction  # no option of rollouts idle at 0


def test_evaluations_in_remarks() -> None:
    commands = [
        shlex.split(command)
        for path in (*RECIPES, "recipes/README.md")
        for command in re.findall(r"tutelage eval ([^`\n]+?)(?: {2,}|`|$)", remarks(path), re.MULTILINE)
    ]
    assert len(commands) >= 4
    positional = {"model": cli_options.Positional(str, "")}
    for command in commands:
        options = cli_options.parse(EvalRequest, command, prog="eval", description="", positional=positional)
        request = config_io.validate(EvalRequest, {**options[1], **options[0]})
        assert request.model == command[0]
        assert request.harness or request.split == "validation"


def test_remarks_are_found() -> None:
    found = set(spelled())
    teacher = ("--student", "google/t5-v1_1-xl", "--student-model.dtype", "bfloat16", "--output")
    assert ("recipes/paper/xsum/sft.yaml", *teacher, "runs/paper/xsum/teacher") in found
    assert ("recipes/paper/gsm8k/supervised_kd.yaml", "--method", "seqkd") in found
    assert ("recipes/paper/flan/gkd.yaml", "--student-data-fraction", "0.5") in found
