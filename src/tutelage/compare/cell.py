"""One run of a comparison: trains what is not trained, tests what is not tested, and records it last of all."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from rich.console import Console

from tutelage.compare import records
from tutelage.compare.intervals import replicate
from tutelage.compare.records import EvaluationProtocol, EvaluationRecord, RunRecord
from tutelage.compare.start import Start
from tutelage.eval.evaluate import evaluate
from tutelage.eval.results import Evaluation, save
from tutelage.models import load
from tutelage.models.language_model import LanguageModel
from tutelage.models.options import ModelConfig
from tutelage.run import run
from tutelage.tasks import Task, load_task
from tutelage.tasks.encode import encode_split, fingerprint
from tutelage.train.config import Config
from tutelage.train.metrics import read_metrics
from tutelage.train.prompts import encoding_of, sampling_of
from tutelage.train.setup import holds_run, join_ends, pick_device
from tutelage.types import Prompt

RUN_RECORD = "record.json"
TEST_RECORD = "test.json"


@dataclass(frozen=True)
class Job:
    """What one process does.

    Attributes:
        label: for the progress display.
        folder: where its records go.
        config: of the run; of the initial student and the teacher: a run that has them.
        model: "trained": by the run; the others are tested as they are.
        test: how to evaluate on the test split; None: not at all, as in the search.
        threads: of the process.
    """

    label: str
    folder: Path
    config: Config
    model: Literal["trained", "initial", "teacher"]
    test: EvaluationProtocol | None
    threads: int

    @property
    def finished(self) -> bool:
        """Whether nothing is left to do."""
        return (self.model != "trained" or self.run_record is not None) and (
            self.test is None or self.test_record is not None
        )

    @property
    def run_record(self) -> RunRecord | None:
        """The record of the training; None while there is none."""
        return records.read(RunRecord, self.folder / RUN_RECORD)

    @property
    def test_record(self) -> EvaluationRecord | None:
        """The record of the test by this job's protocol; None while there is none."""
        found = records.read(EvaluationRecord, self.folder / TEST_RECORD)
        return found if found is not None and found.protocol == self.test else None


def work(job: Job) -> None:
    """Does what is left of a job.

    Raises:
        UserError, Interrupted: as `run.run`.
    """
    job.folder.mkdir(parents=True, exist_ok=True)
    with _alone(job.folder):
        if job.model == "trained" and job.run_record is None:
            _train(job)
        if job.test is not None and job.test_record is None:
            _test(job, job.test)


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Waits until no other process works in the folder, such as one left behind by a comparison that was killed."""
    import fcntl

    with (folder / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # the system lifts it when the process ends, however it ends
        yield


def _train(job: Job) -> None:
    config = job.config.model_copy(update={"resume": holds_run(job.folder)})
    start = Start(config, job.folder.parent.parent / "starts")
    result = run(config, console=Console(quiet=True), start=start)
    assert result.after is not None  # eval.final is validation
    metrics = read_metrics(job.folder / "metrics.jsonl")
    record = records.run_record(job.config, result.before, result.after, metrics, job.threads)
    records.write(record, job.folder / RUN_RECORD)
    shutil.rmtree(job.folder / "checkpoints")  # the student is in model/, and nothing goes on from here


def _test(job: Job, protocol: EvaluationProtocol) -> None:
    config = job.config
    task = load_task(config.task.name, data=config.task.data, **config.task.options)
    model = _model(job)
    encoding = encoding_of(config, model, task)
    join_ends([model], encoding)
    prompts = encode_split(task, "test", encoding, protocol.limit, show_progress=False)
    evaluation = evaluate(
        model,
        task,
        prompts,
        temperatures=protocol.temperatures,
        max_new_tokens=sampling_of(config, task).max_new_tokens,
        seed=config.seed,
        batch_rows=config.eval.batch_rows,
        num_beams=protocol.num_beams,
        bootstrap=protocol.resamples,
    )
    save(evaluation, job.folder / "test", {"protocol": protocol.model_dump(mode="json")})
    record = EvaluationRecord(
        protocol=protocol,
        examples=fingerprint(prompts),
        scores=records.scores_of(evaluation),
        replicates=_replicates(evaluation, task, prompts, protocol.resamples),
    )
    records.write(record, job.folder / TEST_RECORD)


def _model(job: Job) -> LanguageModel:
    """The model to test, with the options its run loads it with."""
    config, device = job.config, pick_device(job.config.train.device)
    student = config.student_model
    if job.model == "trained":
        options = ModelConfig(
            dtype=student.dtype or "float32",
            trust_remote_code=student.trust_remote_code,
            attn_implementation=student.attn_implementation,
        )
        return load.load(str(job.folder / "model"), options, device)
    needs_teacher = job.model == "teacher" or student.init == "teacher_layers"
    teacher = (
        load.load_teacher(config.teacher, config.teacher_model, device) if needs_teacher and config.teacher else None
    )
    if job.model == "teacher":
        assert teacher is not None  # the plan asks for teachers that are named
        return teacher
    torch.manual_seed(config.seed)  # of fresh weights, as in the run
    return load.load_student(config.student, student, teacher, device)


def _replicates(
    evaluation: Evaluation, task: Task, prompts: Sequence[Prompt], resamples: int
) -> dict[str, tuple[float, ...]]:
    """By decoding; none for a task without a metric."""
    found = {}
    for row in evaluation.rows:
        texts = [completion.text for completion in evaluation.completions if completion.decoding == row.decoding]
        again = task.score(texts, [prompt.example for prompt in prompts]).resample
        if again is not None:
            found[row.decoding] = replicate(again, len(prompts), resamples)
    return found
