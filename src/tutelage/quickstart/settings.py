"""What the quickstart compares: the models, the sizes, and each method with the learning rate chosen for it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pydantic import Field

from tutelage.section import Section
from tutelage.train import config_io
from tutelage.train.config import Config

ASSETS = Path(__file__).parents[1] / "assets" / "arithmetic"

# AdamW trains embeddings and norms at a tenth of Muon's rate on the matrices, here and in the search.
ADAMW_SHARE = 0.1


@dataclass(frozen=True)
class Method:
    """One side of the comparison.

    Attributes:
        name: of its folder and its key in results.json.
        label: as tables call it.
        method: preset of `train.methods`.
        divergence: its spelling in configurations.
        matrix_learning_rate: Muon's peak.
    """

    name: str
    label: str
    method: str
    divergence: str
    matrix_learning_rate: float


# Learning rates are the best on the validation split, of four each and one seed, in the search of recipes/reproduce/rates.yaml, which has
# these two methods at this number of steps: docs/results/reproduction/rates.
SEARCHED_STEPS = 350
SUPERVISED_KD = Method("supervised_kd", "supervised KD", "supervised_kd", "forward_kl", matrix_learning_rate=0.02)
ON_POLICY_GKD = Method("on_policy_gkd", "on-policy GKD", "gkd", "forward_kl", matrix_learning_rate=0.01)


@dataclass(frozen=True)
class Settings:
    """Everything the comparison depends on, besides the seed.

    Attributes:
        teacher, student: Hugging Face folders.
        supervised, on_policy: the two methods.
        train_size: problems with worked answers; the carried student was fine-tuned on these.
        prompt_size: problems that on-policy training may ask; the first `train_size` are those with worked answers, which
            it does not look at.
        steps, batch_size: the same for both methods.
        evaluate_every: steps between evaluations on the validation split.
        validation_size, test_size: problems evaluated.
        resamples: behind the 95% intervals.
    """

    teacher: Path = ASSETS / "teacher"
    student: Path = ASSETS / "student"
    supervised: Method = SUPERVISED_KD
    on_policy: Method = ON_POLICY_GKD
    train_size: int = 1000
    prompt_size: int = 10_000
    steps: int = SEARCHED_STEPS
    batch_size: int = 32
    evaluate_every: int = 70
    validation_size: int = 200
    test_size: int = 500
    resamples: int = 1000


class Options(Section):
    """What the command line may say."""

    output: Path = Path("runs/quickstart")
    """The folder for the results."""
    steps: int = Field(SEARCHED_STEPS, ge=1)
    """Optimiser steps of each method; the learning rates were chosen at the default."""
    seed: int = 0
    """Keys every random choice."""


def configuration(settings: Settings, method: Method, output: Path, seed: int) -> Config:
    """An ordinary training run.

    The two sides differ in the method, its learning rate, and in what the method can use: supervised KD needs worked answers
    and has `train_size` of them, on-policy GKD needs problems only.
    """
    problems = settings.prompt_size if method.method == "gkd" else settings.train_size
    return config_io.build(
        {
            "student": str(settings.student),
            "teacher": str(settings.teacher),
            # Not every CPU has bfloat16 arithmetic; float32 holds the carried weights exactly.
            "teacher_model": {"dtype": "float32"},
            "output": str(output),
            "overwrite": True,
            "seed": seed,
            "method": method.method,
            "divergence": method.divergence,
            "task": {
                "name": "arithmetic",
                "options": {"train_size": problems, "test_size": settings.test_size},
            },
            "train": {
                "steps": settings.steps,
                "batch_size": settings.batch_size,
                "optimizer": "muon",
                "matrix_learning_rate": method.matrix_learning_rate,
                "learning_rate": ADAMW_SHARE * method.matrix_learning_rate,
                "warmup_steps": min(10, settings.steps - 1),
                "schedule": "cosine",
                "micro_batch_tokens": 1024,
                "checkpoint_every": settings.evaluate_every,
                "device": "cpu",  # the models are too small for a GPU to be quicker
            },
            "eval": {
                "every": settings.evaluate_every,
                "marks": 6,
                "final": "validation",
                "limit": settings.validation_size,
                "batch_rows": settings.validation_size,
            },
            "log": {"samples": 0},
        }
    )
