"""lm-evaluation-harness: the error without it, reading its results, and a real run where it is installed."""

import json
import sys
from fnmatch import filter as matches
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from tutelage.errors import UserError
from tutelage.eval.harness import HarnessTasks, find_harness_tasks, run_harness, scores_from
from tutelage.eval.results import HarnessScore

TASK = """
task: tiny_choice
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: ["w1", "w2"]
doc_to_target: "{{{{label}}}}"
metric_list: [{{metric: acc}}]
"""


class ThreeTasks:
    """Stands for lm_eval's TaskManager."""

    def __init__(self, include_path: str | None) -> None:
        self.include_path = include_path

    def match_tasks(self, names: list[str]) -> list[str]:
        return [task for name in names for task in matches(["bbh", "mmlu", "mmlu_pro"], name)]


@pytest.fixture
def package(monkeypatch) -> ModuleType:
    """An `lm_eval` of three tasks, to be filled with a `simple_evaluate`; in the place of an installed one."""
    contents: dict[str, dict[str, object]] = {
        "lm_eval": {},
        "lm_eval.tasks": {"TaskManager": ThreeTasks},
        "lm_eval.models": {},
        "lm_eval.models.huggingface": {"HFLM": SimpleNamespace},
    }
    for name, members in contents.items():
        module = ModuleType(name)
        vars(module).update(members, __path__=[])
        monkeypatch.setitem(sys.modules, name, module)
    return sys.modules["lm_eval"]


def test_without_the_package_the_error_names_the_command(monkeypatch) -> None:
    # The part that a package without its extra lacks; hiding it works whether or not lm_eval is installed or imported.
    monkeypatch.setitem(sys.modules, "lm_eval.models.huggingface", None)
    with pytest.raises(UserError, match=r'harness=mmlu,bbh needs .* pip install "tutelage\[lm-eval\]"'):
        find_harness_tasks(("mmlu", "bbh"))


def test_tasks_are_found_without_a_model(package, tmp_path) -> None:
    found = find_harness_tasks(("mmlu*", "bbh", "mmlu"), include=tmp_path)
    assert found.names == ("mmlu", "mmlu_pro", "bbh")
    assert found.manager.include_path == str(tmp_path)
    with pytest.raises(UserError, match=r"knows no task mmul, bhb; .* harness_tasks=FOLDER"):
        find_harness_tasks(("mmul", "bbh", "bhb"))


def test_definitions_in_no_folder_are_not_passed_over(package, tmp_path) -> None:
    with pytest.raises(UserError, match=r"harness_tasks=.*/nowhere is no folder"):
        find_harness_tasks(("mmlu",), include=tmp_path / "nowhere")


def test_what_the_harness_is_asked(package, make_model) -> None:
    asked = {}

    def simple_evaluate(**arguments: object) -> dict[str, object]:
        asked.update(arguments)
        return {"results": {"bbh": {"alias": "bbh", "acc,none": 0.75}}}

    vars(package)["simple_evaluate"] = simple_evaluate
    model, manager = make_model("llama"), ThreeTasks(None)
    scores = run_harness(model, HarnessTasks(("bbh", "mmlu"), manager), batch_rows=3, limit=2, seed=7)
    assert scores == (HarnessScore("bbh", "acc,none", 0.75, None),)
    assert vars(asked.pop("model")) == {"pretrained": model.module, "tokenizer": model.tokenizer, "batch_size": 3}
    assert asked == {
        "tasks": ["bbh", "mmlu"],
        "task_manager": manager,
        "limit": 2,
        "fewshot_random_seed": 7,
        "log_samples": False,
    }


def test_results_are_flattened() -> None:
    results = {
        "gsm8k": {
            "alias": "gsm8k",
            "sample_len": 4,
            "exact_match,strict-match": 0.25,
            "exact_match_stderr,strict-match": 0.1,
            "exact_match,flexible-extract": 0.5,
            "exact_match_stderr,flexible-extract": "N/A",
        },
        "mmlu": {"alias": "mmlu", "acc,none": 0.75, "acc_stderr,none": 0.01},
    }
    assert scores_from(results) == (
        HarnessScore("gsm8k", "exact_match,strict-match", 0.25, 0.1),
        HarnessScore("gsm8k", "exact_match,flexible-extract", 0.5, None),
        HarnessScore("mmlu", "acc,none", 0.75, 0.01),
    )


@pytest.fixture
def tiny_task(tmp_path, monkeypatch) -> Path:
    """A folder with a task of two examples; skips where the harness is not installed."""
    pytest.importorskip("lm_eval")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    data = tmp_path / "test.jsonl"
    # The same question with either label: exactly half is right, whatever the model answers.
    data.write_text("".join(json.dumps({"question": "w3 w4", "label": label}) + "\n" for label in (0, 1)))
    (tmp_path / "tiny.yaml").write_text(TASK.format(data=data))
    return tmp_path


def test_a_real_run_on_a_local_task(model, tiny_task) -> None:
    (score,) = run_harness(model, find_harness_tasks(("tiny_ch*",), include=tiny_task), batch_rows=2)
    assert (score.task, score.metric, score.value) == ("tiny_choice", "acc,none", 0.5)


def test_unknown_task(tiny_task) -> None:
    with pytest.raises(UserError, match="knows no task tiny_choise"):
        find_harness_tasks(("tiny_choice", "tiny_choise"), include=tiny_task)
