from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from tests.compare.conftest import held_out_record, raw
from tests.conftest import build_config, tokenizer
from tutelage.compare import checks, compare, plan, records
from tutelage.compare.cell import TEST_RECORD
from tutelage.compare.checks import check_tests
from tutelage.compare.config import read
from tutelage.compare.plan import Cell
from tutelage.compare.records import EvaluationProtocol
from tutelage.errors import UserError
from tutelage.tasks import Task

PROTOCOL = EvaluationProtocol(limit=None, temperatures=(0.0,), num_beams=1, resamples=5)
LONG = "1 + 2 = " * 20


def make_cells(models: Path, output: Path, **base: Any) -> list[Cell]:
    recipe = read(raw(models, output, base=base))
    return [cell for variant in plan.expand(recipe) for cell in plan.final_cells(recipe, variant, {})]


def write_rows(folder: Path, test: Sequence[str]) -> dict[str, Any]:
    """Keys of a task whose prompts are short but for those of the test split."""
    for split, prompts in (("train", ["1 + 2"] * 20), ("validation", ["1 + 2"] * 6), ("test", test)):
        rows = [json.dumps({"prompt": prompt, "completion": "3"}) for prompt in prompts]
        (folder / f"{split}.jsonl").write_text("\n".join(rows) + "\n")
    return {"name": "jsonl", "data": str(folder), "options": {}, "max_prompt_tokens": 72}


@pytest.fixture
def jsonl_cells(models: Path, tmp_path: Path) -> Callable[..., list[Cell]]:
    """Runs of a task of rows with these test prompts."""

    def make(test: Sequence[str], **base: Any) -> list[Cell]:
        task = {**write_rows(tmp_path, test), **base.pop("task", {})}
        recipe = raw(models, tmp_path / "out")
        recipe["base"] |= {**base, "task": task}
        checked = read(recipe)
        return [cell for variant in plan.expand(checked) for cell in plan.final_cells(checked, variant, {})]

    return make


def test_a_comparison_that_could_not_be_tested_trains_nothing(models: Path, tmp_path: Path) -> None:
    recipe = raw(models, tmp_path / "out")
    recipe["base"]["task"] = write_rows(tmp_path, ["1 + 2", LONG])
    with pytest.raises(UserError, match="method kd: jsonl, test example 1"):
        compare(recipe, console=Console(quiet=True), in_processes=False)
    assert not list(tmp_path.glob("out/runs/*"))


def test_a_test_prompt_over_the_limit_is_found_before_anything_is_trained(
    jsonl_cells: Callable[..., list[Cell]],
) -> None:
    cells = jsonl_cells(["1 + 2", LONG])
    tokens = len(tokenizer()(LONG)["input_ids"])
    assert tokens > 72
    with pytest.raises(
        UserError,
        match=rf"^method kd: jsonl, test example 1: the prompt has {tokens} tokens, the limit is 72; raise task\.max_prompt_tokens",
    ):
        check_tests(cells, PROTOCOL)
    check_tests(cells, PROTOCOL.model_copy(update={"limit": 1}))  # the long one is not tested
    check_tests(jsonl_cells(["1 + 2", LONG], task={"skip_long_prompts": True}), PROTOCOL)
    with pytest.raises(UserError, match=r"^method kd: there is nothing to test: the test split has no prompts, or all"):
        check_tests(jsonl_cells([LONG], task={"skip_long_prompts": True}), PROTOCOL)


@pytest.mark.parametrize("short", ["student", "teacher"])
def test_a_completion_past_the_last_position_is_found_too(short: str, models: Path, tmp_path: Path) -> None:
    task = write_rows(tmp_path, [LONG])
    tokens = len(tokenizer()(LONG)["input_ids"])
    made: dict[str, str] = {}
    for role, positions in (("student", 512), ("teacher", 512), (short, tokens + 5)):
        config = build_config("gpt2", vocab=len(tokenizer()))
        config.n_positions = positions
        made[role] = str(tmp_path / role)
        config.save_pretrained(made[role])  # no weights: none are needed
        tokenizer().save_pretrained(made[role])
    recipe = raw(models, tmp_path / "out")
    recipe["base"] |= {**made, "task": {**task, "max_prompt_tokens": 300}}
    checked = read(recipe)
    cells = [plan.make_cell(checked, variant, {}, 0) for variant in plan.expand(checked)]
    with pytest.raises(
        UserError,
        match=rf"method kd: {made[short]} has {tokens + 5} positions, but it is to read prompts of up to {tokens} and completions "
        "of up to 6 tokens",
    ):
        check_tests(cells, PROTOCOL)


def test_beam_search_of_a_task_that_forces_text(models: Path, tmp_path: Path) -> None:
    rows = "".join(json.dumps({"question": f"{n} + 1?", "answer": f"#### {n + 1}"}) + "\n" for n in range(40))
    for split in ("train", "validation", "test"):
        (tmp_path / f"{split}.jsonl").write_text(rows)
    task = {"name": "gsm8k", "data": str(tmp_path), "max_prompt_tokens": 72}

    def make(options: dict[str, Any]) -> list[Cell]:
        recipe = raw(models, tmp_path / "out")
        recipe["base"]["task"] = {**task, "options": options}
        checked = read(recipe)
        return [plan.make_cell(checked, plan.expand(checked)[0], {}, 0)]

    beams = PROTOCOL.model_copy(update={"num_beams": 4})
    with pytest.raises(UserError, match="method kd: num_beams=4: the gsm8k task forces text during decoding"):
        check_tests(make({}), beams)
    check_tests(make({}), PROTOCOL)
    check_tests(make({"calculator": False}), beams)


def test_once_for_each_task_and_student_and_not_at_all_for_what_is_tested(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoded: list[int] = []
    original = checks.encode_split

    def encode_split(task: Task, split: str, *rest: Any, **options: Any) -> Any:
        assert split == "test"
        encoded.append(len(task.examples(split)))
        return original(task, split, *rest, **options)

    monkeypatch.setattr(checks, "encode_split", encode_split)
    cells = make_cells(models, tmp_path)
    others = make_cells(models, tmp_path, task={"options": {"test_size": 4}})
    longer = make_cells(models, tmp_path, rollout={"max_new_tokens": 7})
    check_tests([*cells, *others, *longer], PROTOCOL)
    assert encoded == [5, 4]
    # One finished run shows that all that are decoded as it was can be; by another protocol it shows nothing.
    cells[2].folder.mkdir(parents=True)
    records.write(held_out_record(50.0, PROTOCOL), cells[2].folder / TEST_RECORD)
    encoded.clear()
    check_tests([*cells, *others], PROTOCOL)
    assert encoded == [4]
    check_tests(cells, PROTOCOL)
    assert encoded == [4]
    check_tests(cells, PROTOCOL.model_copy(update={"limit": 3}))
    assert encoded == [4, 5]
