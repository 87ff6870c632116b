"""lm-evaluation-harness: the error without it, reading its results, and a real run where it is installed."""

import json
import sys
from pathlib import Path

import pytest

from tutelage.errors import UserError
from tutelage.eval.harness import run_harness, scores_from
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


def test_without_the_package_the_error_names_the_command(make_model, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(UserError, match=r'harness=mmlu,bbh needs .* pip install "tutelage\[lm-eval\]"'):
        run_harness(make_model("llama"), ("mmlu", "bbh"))


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
    (score,) = run_harness(model, ("tiny_choice",), include=tiny_task, batch_rows=2)
    assert (score.task, score.metric, score.value) == ("tiny_choice", "acc,none", 0.5)


def test_unknown_task(make_model, tiny_task) -> None:
    with pytest.raises(UserError, match="knows no task tiny_choise"):
        run_harness(make_model("llama"), ("tiny_choice", "tiny_choise"), include=tiny_task)
