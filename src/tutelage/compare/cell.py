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
from tutelage.models import load, vocabulary
from tutelage.models.language_model import LanguageModel
from tutelage.models.options import ModelConfig
from tutelage.rewards.load import load_reward
from tutelage.rewards.options import RewardConfig
from tutelage.rewards.rewarder import Rewarder
from tutelage.run import run
from tutelage.tasks import Task, load_task
from tutelage.tasks.encode import Encoding, encode_split, fingerprint, longest_prompt
from tutelage.train.checks import check_positions
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
        threads: it computes with.
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
        return None if self.test is None else read_test(self.folder, self.test)


def read_test(folder: Path, protocol: EvaluationProtocol) -> EvaluationRecord | None:
    """The record of a test by this protocol that a folder holds; None while there is none."""
    found = records.read(EvaluationRecord, folder / TEST_RECORD)
    return found if found is not None and found.protocol == protocol else None


def work(job: Job) -> None:
    """Does what is left of a job.

    Raises:
        UserError, Interrupted: as `run.run`.
    """
    job.folder.mkdir(parents=True, exist_ok=True)
    with _alone(job.folder), _threads(job.threads):
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


@contextmanager
def _threads(count: int) -> Iterator[None]:
    """Computes with this many threads: seconds of runs say something of the methods only where these are equal."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


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
    encoding = _as_in_the_run(job, model, task)
    prompts = encode_split(task, "test", encoding, protocol.limit, show_progress=False)
    check_positions(model, longest_prompt(prompts), sampling_of(config, task))
    reward = load_reward(config.rl if config.eval.reward else RewardConfig(), task, model.device)
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
        rewarder=None if reward is None else Rewarder(reward, task, model.tokenizer),
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


def _as_in_the_run(job: Job, model: LanguageModel, task: Task) -> Encoding:
    """Gives a model to test the ends and the vocabulary that it has in its run, where student and teachers share theirs.

    Returns:
        How the run encodes prompts, for the student and for the teachers.
    """
    config = job.config
    student = outline_of_student(config) if job.model == "teacher" else model
    names = () if config.teacher is None else (config.teacher, *config.other_teachers)
    teachers = [load.outline(name, config.teacher_model) for name in names]
    if job.model == "teacher":
        teachers[0] = model
    for teacher in teachers:
        vocabulary.agree(student, teacher)
    encoding = encoding_of(config, student, task)
    join_ends([student, *teachers], encoding)
    return encoding


def outline_of_student(config: Config) -> LanguageModel:
    """The student of a run without its weights; one that is made of the teacher's layers differs from it in these only."""
    options = config.student_model
    if options.init == "teacher_layers":
        assert config.teacher is not None  # of the configuration's checks
        return load.outline(config.teacher, config.teacher_model)
    assert config.student is not None  # likewise
    return load.outline(config.student, options, fresh=options.init == "config")


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
