"""recipes/reproduce/smollm2.py: every task's runs resolve, and one goes from a model to its tables at a size that takes no time."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from tests.conftest import build_module, tokenizer
from tests.recipes.conftest import FOLDER, NAMES
from tutelage.compare import compare
from tutelage.train import config_io

CHAT = (
    "{% for m in messages %}<s>{{ m['role'] }}: {{ m['content'] }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<s>assistant:{% endif %}"
)


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    import importlib

    monkeypatch.syspath_prepend(FOLDER)
    yield importlib.import_module("smollm2")
    for name in ("smollm2", *NAMES):
        sys.modules.pop(name, None)


@pytest.fixture
def settings(script: Any) -> dict[str, Any]:
    return config_io.load_yaml(script.SETTINGS)


@pytest.mark.parametrize("small", [False, True])
@pytest.mark.parametrize("task", ["gsm8k", "aeslc", "t0_mixture"])
def test_every_stage_resolves(script: Any, settings: dict[str, Any], task: str, small: bool, tmp_path: Path) -> None:
    study = script.Study(script.chosen(settings, small), task, "hub/model", Path("rows"), tmp_path)
    teacher, student = config_io.build(study.teacher_config()), config_io.build(study.student_config(10))
    assert (teacher.method, teacher.student, teacher.teacher) == ("sft", "hub/model", None)
    assert (student.student_model.layers, student.teacher) == (10, str(tmp_path / "teacher" / "model"))
    assert teacher.rollout == student.rollout
    assert (teacher.train.steps, student.train.batch_size) == ((60, 4) if small else (700, 32))
    assert len(study.comparison(10)["search"]["train.learning_rate"]) == (1 if small else 3)
    assert (
        teacher.task.max_prompt_tokens
        == {"gsm8k": None, "aeslc": 192 if small else 512, "t0_mixture": 192 if small else 512}[task]
    )
    expected = {"gsm8k": "rows", "aeslc": "rows/train.jsonl", "t0_mixture": "rows"}[task]
    assert teacher.task.data == student.task.data == expected
    if task == "aeslc":
        assert teacher.task.options["test_data"] == "rows/validation.jsonl"


def test_from_a_model_to_tables(script: Any, settings: dict[str, Any], tmp_path: Path) -> None:
    torch.set_num_threads(1)
    spoken = deepcopy(tokenizer())
    spoken.chat_template = CHAT
    module = build_module("llama", vocab=len(spoken), layers=3)
    module.config.max_position_embeddings = 1024  # positions are computed: no weight depends on it
    for part in (module, spoken):
        part.save_pretrained(tmp_path / "model")
    rows = [{"question": f"Tom has {n} apples.", "answer": f"{n} + 1 = {n + 1}. #### {n + 1}"} for n in range(60)]
    for split in ("train", "test"):
        (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    small = {"steps": 2, "batch_size": 4, "warmup_steps": 1, "checkpoint_every": 2, "device": "cpu"}
    for stage in ("shared", "teacher", "student"):
        settings[stage] = config_io.deep_merge(
            settings[stage], {"train": small, "eval": {"limit": 4}, "log": {"progress": False, "report": False}}
        )
    for stage in ("teacher", "student"):
        settings[stage] = config_io.deep_merge(settings[stage], {"student_model": {"dtype": "float32"}})
    base = {
        "train": small,
        "eval": {"every": 1},
        "student_model": {"dtype": "float32"},
        "rollout": {"max_new_tokens": 4},
    }
    settings["comparison"] |= {
        "base": config_io.deep_merge(settings["comparison"]["base"], base),
        "seeds": [0],
        "search": {},
    }
    settings["comparison"] |= {"test_limit": 4, "validation_limit": 3, "resamples": 10}
    settings["comparison"]["methods"] = settings["comparison"]["methods"][::2]
    settings["tasks"]["gsm8k"]["rollout"]["max_new_tokens"] = 4

    study = script.Study(settings, "gsm8k", str(tmp_path / "model"), tmp_path, tmp_path / "runs")
    quiet = Console(file=io.StringIO())
    script.once(study.teacher_config(), quiet)
    script.once(study.student_config(2), quiet)
    made = (study.student(2) / "model" / "config.json").stat().st_mtime_ns
    script.once(study.student_config(2), quiet)  # nothing is done twice
    assert (study.student(2) / "model" / "config.json").stat().st_mtime_ns == made
    result = compare(study.comparison(2), console=quiet, in_processes=False)
    assert [method.variant.name for method in result.methods] == [
        "supervised KD", "on-policy GKD forward_kl", "on-policy GKD jsd(0.9)", "on-policy GKD reverse_kl",
    ]  # fmt: skip
    script.keep_tables(result.recipe.output, tmp_path / "results" / "smollm2-gsm8k-2")
    part = sys.modules["tables"].Part(tmp_path / "results" / "smollm2-gsm8k-2")
    assert (part.is_there, part.metric) == (True, "accuracy")
    assert part.per_seed("supervised KD", "accuracy", "greedy").keys() == {0}
