"""Seconds and memory of an exact divergence loss, forward and backward: Tutelage beside TRL, Liger and four bare GEMMs.

    python3 -m venv .venv-trl && .venv-trl/bin/pip install -c constraints.txt -r benchmarks/requirements-trl.txt
    .venv-trl/bin/pip install --no-deps liger-kernel==0.8.5
    .venv/bin/python benchmarks/loss.py
    .venv/bin/python benchmarks/loss_plot.py

One process per implementation; all get the same inputs and take turns, one pass at a time. Before anything is timed, value
and gradients of all are compared in float32 with the full-logits reference in float64; after each case, the values of all
at its own size and dtype. benchmarks/README.md says more.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path
from typing import IO, Any

import loss_table
import machine
import torch
from loss_implementations import IMPLEMENTATIONS, LOSSES
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from tutelage.fused import linear_divergence
from tutelage.types import LMHead

HERE = Path(__file__).resolve().parent
SIZES = ("512,576/576,49152", "2048,576/896,49152", "1024,1024/2048,151936")
CUDA_SIZE = "8192,2048/4096,151936"  # in bfloat16 only, as models of this size are trained
AGREEMENT_SIZE = "7,8/12,37"
# Of float32 with the reference in float64: the value, and the gradients' largest entry, may be off by this much.
VALUE_TOLERANCE, GRADIENT_TOLERANCE = 1e-5, 1e-4
# Of the values of one case with each other, relative. In float32, sums over all tokens and the vocabulary differ by some 1e-6;
# one token of 8,192 left out shows as 1.2e-4. In bfloat16, Liger sums and returns numbers of that dtype: a rounding takes
# up to 2**-8 = 4e-3, and 2e-2 is five of them (measured on a CPU: 3e-3, and below 1e-4 for all others).
CASE_TOLERANCES = {"float32": 1e-4, "bfloat16": 2e-2}
LOGIT_SPREAD = 2.0  # standard deviation of both models' logits


@dataclass(frozen=True)
class Case:
    """What all implementations compute at once."""

    tokens: int
    student_hidden: int
    teacher_hidden: int
    vocabulary: int
    dtype: str
    loss: str

    @classmethod
    def of(cls, size: str, dtype: str, loss: str) -> Case:
        tokens, hidden, vocabulary = size.split(",")
        student, teacher = hidden.split("/")
        return cls(int(tokens), int(student), int(teacher), int(vocabulary), dtype, loss)

    @property
    def title(self) -> str:
        size = f"{self.tokens:,} x {self.student_hidden}/{self.teacher_hidden} x {self.vocabulary:,}"
        return f"{size} {self.dtype} {self.loss}"

    @property
    def shapes(self) -> dict[str, tuple[int, int]]:
        """Of the inputs, by the names of `loss_implementations.Problem`."""
        return {
            "hidden": (self.tokens, self.student_hidden),
            "weight": (self.vocabulary, self.student_hidden),
            "teacher_hidden": (self.tokens, self.teacher_hidden),
            "teacher_weight": (self.vocabulary, self.teacher_hidden),
        }

    @property
    def head_gradient_mb(self) -> float:
        """Of the student's head, in the dtype of the head."""
        return self.vocabulary * self.student_hidden * getattr(torch, self.dtype).itemsize / 2**20

    def write_inputs(self, path: Path, seed: int) -> None:
        """Hidden states and heads whose logits are spread as `LOGIT_SPREAD` says; the same numbers in every dtype."""
        generator = torch.Generator().manual_seed(seed)
        inputs = {}
        for name, shape in self.shapes.items():
            scale = LOGIT_SPREAD / shape[1] ** 0.5 if name.endswith("weight") else 1.0
            inputs[name] = (torch.randn(shape, generator=generator) * scale).to(getattr(torch, self.dtype))
        torch.save(inputs, path)


class Worker:
    """A process of loss_worker.py."""

    def __init__(self, name: str, options: argparse.Namespace, errors: IO[str], environment: dict[str, str]) -> None:
        self.name, self._errors = name, errors
        python = options.trl_python if IMPLEMENTATIONS[name].is_peer else sys.executable
        environment = {**os.environ, "OMP_NUM_THREADS": str(options.threads), **environment}
        if options.device == "cpu":
            environment["CUDA_VISIBLE_DEVICES"] = ""
        self._process = subprocess.Popen(
            [str(python), str(HERE / "loss_worker.py"), name, options.device],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env=environment,
        )
        self.versions = self._reply("starting")

    def ask(self, do: str, inputs: Path, loss: str) -> dict[str, Any]:
        """The reply to one request; ends the benchmark if the worker fails."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"do": do, "inputs": str(inputs), "loss": loss}) + "\n")
        self._process.stdin.flush()
        return self._reply(f"{do}, {loss}")

    def close(self) -> None:
        """Ends the process: it has no more requests to wait for."""
        self._process.communicate()

    def _reply(self, doing: str) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            self._process.wait()
            self._errors.seek(0)
            sys.exit(f"error: {self.name} failed ({doing}):\n{self._errors.read()[-4000:]}")
        return json.loads(line)


@contextmanager
def start(names: list[str], options: argparse.Namespace, **environment: str) -> Iterator[dict[str, Worker]]:
    """One worker for each name, ended on the way out."""
    with ExitStack() as stack:
        workers = {}
        for name in names:
            errors = stack.enter_context(tempfile.TemporaryFile("w+"))
            workers[name] = Worker(name, options, errors, environment)
            stack.callback(workers[name].close)
        yield workers


def check_agreement(workers: dict[str, Worker], losses: list[str], folder: Path, seed: int) -> dict[str, Any]:
    """Relative errors of every implementation's value and gradients in float32; stops when one is too large."""
    found: dict[str, dict[str, dict[str, float]]] = {}
    wrong = []
    for loss in losses:
        inputs = folder / "agreement.pt"
        Case.of(AGREEMENT_SIZE, "float32", loss).write_inputs(inputs, seed)
        expected = exact(inputs, loss)
        found[loss] = {}
        for name, worker in workers.items():
            if not IMPLEMENTATIONS[name].is_loss:
                continue
            reply = worker.ask("gradients", inputs, loss)
            errors = {key: relative_error(reply[key], value) for key, value in expected.items()}
            found[loss][name] = errors
            wrong += [
                f"{name}, {loss}: the {key.replace('_', ' ')} is off by {error:.1e}, relative to its largest entry"
                for key, error in errors.items()
                if not error <= (VALUE_TOLERANCE if key == "value" else GRADIENT_TOLERANCE)
            ]
    if wrong:
        sys.exit("error: not all implementations compute the same loss:\n" + "\n".join(wrong))
    return found


def exact(inputs: Path, loss: str) -> dict[str, torch.Tensor]:
    """Value and gradients of the mean over tokens from full logits in float64."""
    tensors = {name: tensor.double() for name, tensor in torch.load(inputs, weights_only=True).items()}
    hidden, weight = tensors["hidden"].requires_grad_(), tensors["weight"].requires_grad_()
    teacher = (tensors["teacher_hidden"], LMHead(tensors["teacher_weight"]))
    weights = torch.full((len(hidden),), 1 / len(hidden), dtype=torch.float64)
    value = linear_divergence(hidden, LMHead(weight), *teacher, loss, weights, implementation="reference")
    gradients = torch.autograd.grad(value, (hidden, weight))
    return dict(zip(("value", "hidden_gradient", "weight_gradient"), (value.detach(), *gradients), strict=True))


def relative_error(found: Any, expected: torch.Tensor) -> float:
    difference = torch.tensor(found, dtype=torch.float64) - expected
    return float(difference.abs().max() / expected.abs().max())


def compare_values(case: Case, rows: dict[str, Any]) -> dict[str, Any] | None:
    """The value in `rows` that is farthest from the reference's; stops when one is too far.

    Where the reference has none, because it was not asked for or did not fit, Tutelage's stands in, or else the first.

    Args:
        case: for its dtype and for the message.
        rows: of the implementations, by name.

    Returns:
        Whose value it is, whose it was compared with, and the relative deviation; None with fewer than two values.
    """
    values = {name: row["value"] for name, row in rows.items() if row.get("value") is not None}
    if len(values) < 2:
        return None
    standard = next(name for name in ("reference", "tutelage", *values) if name in values)
    expected, tolerance = values.pop(standard), CASE_TOLERANCES[case.dtype]
    deviations = {name: abs(value - expected) / abs(expected) for name, value in values.items()}
    wrong = [
        f"{name}: {values[name]:.6g}, off by {deviation:.1e}"
        for name, deviation in deviations.items()
        if not deviation <= tolerance
    ]
    if wrong:
        title = f"{case.title}: not all values are within {tolerance:g} of {standard}'s, {expected:.6g}"
        sys.exit("\n".join([f"error: {title}:", *wrong]))
    farthest = max(deviations, key=lambda name: deviations[name])
    return {"of": farthest, "from": standard, "relative": deviations[farthest]}


class Benchmark:
    """All cases, one after the other; the record is written after each of them."""

    def __init__(self, options: argparse.Namespace, folder: Path, progress: Progress) -> None:
        self._options, self._folder, self._progress = options, folder, progress
        self._inputs = folder / "inputs.pt"
        self._task = progress.add_task("", total=len(options.cases) * self._per_case)

    @property
    def _per_case(self) -> int:
        """Passes, or processes for the memory: what the progress bar counts."""
        return len(self._options.memory_of) + len(self._options.implementations) * (1 + self._options.repetitions)

    def run(self) -> dict[str, Any]:
        """The record of the whole benchmark."""
        options = self._options
        self._progress.update(self._task, description="starting")
        with start(options.implementations, options) as workers:
            record = describe(options, {name: worker.versions for name, worker in workers.items()})
            self._progress.update(self._task, description="comparing values")
            record["agreement"]["errors"] = check_agreement(workers, options.losses, self._folder, options.seed)
            written = None
            for done, case in enumerate(options.cases, start=1):
                if (case.shapes, case.dtype) != written:
                    case.write_inputs(self._inputs, options.seed)
                    written = (case.shapes, case.dtype)
                record["cases"].append(self._case(case, workers))
                options.output.write_text(json.dumps(record, indent=1) + "\n")
                self._progress.update(self._task, completed=done * self._per_case)
        return record

    def _case(self, case: Case, workers: dict[str, Worker]) -> dict[str, Any]:
        """Memory of each implementation, each in a fresh process; then the time of all, interleaved."""
        self._progress.update(self._task, description=case.title)
        rows = {name: self._memory(name, case) for name in workers}
        load = os.getloadavg()[0]
        self._time(case, workers, rows)
        deviation = compare_values(case, rows)
        floor = rows.get("gemm_floor", {}).get("seconds")
        for row in rows.values():
            if floor and "seconds" in row:
                row["ratio_to_floor"] = row["seconds"]["median"] / floor["median"]
        found = {"load_before": load, "largest_value_deviation": deviation, "implementations": rows}
        return {**asdict(case), "head_gradient_mb": case.head_gradient_mb, **found}

    def _memory(self, name: str, case: Case) -> dict[str, Any]:
        if name not in self._options.memory_of:
            return {}
        # Large tensors come from and go back to the system one by one, so that nothing freed counts as resident.
        with start([name], self._options, MALLOC_MMAP_THRESHOLD_="65536") as workers:
            reply = workers[name].ask("memory", self._inputs, case.loss)
        self._progress.advance(self._task)
        return reply

    def _time(self, case: Case, workers: dict[str, Worker], rows: dict[str, Any]) -> None:
        """One pass to warm up and then all repetitions, A B C, B C A, C A B, ...; adds the results to `rows`."""
        names = [name for name in workers if "does_not_fit" not in rows[name]]
        runs: dict[str, list[float]] = {name: [] for name in names}
        for repetition in range(1 + self._options.repetitions):
            turn = repetition % len(names) if names else 0
            for name in names[turn:] + names[:turn]:
                if "does_not_fit" in rows[name]:
                    continue
                reply = workers[name].ask("seconds", self._inputs, case.loss)
                self._progress.advance(self._task)
                if "does_not_fit" in reply:
                    rows[name] = reply
                elif repetition == 0:
                    rows[name] |= {"warm_up_seconds": reply["seconds"], "value": reply["value"]}
                else:
                    runs[name].append(reply["seconds"])
        for name in names:
            if "does_not_fit" not in rows[name]:
                rows[name] |= {"seconds": machine.spread(runs[name]), "runs": runs[name]}


def describe(options: argparse.Namespace, versions: dict[str, Any]) -> dict[str, Any]:
    """The record before the first case."""
    words = [Path(word).name if Path(word).is_absolute() else word for word in sys.argv[1:]]
    kept = ("device", "threads", "repetitions", "seed", "sizes", "dtypes", "losses", "implementations", "memory_of")
    tolerances = {"value_tolerance": VALUE_TOLERANCE, "gradient_tolerance": GRADIENT_TOLERANCE}
    accelerator = {"accelerator": torch.cuda.get_device_name()} if options.device == "cuda" else {}
    return {
        "command": shlex.join(["python", "benchmarks/loss.py", *words]),
        "date": date.today().isoformat(),
        "machine": machine.describe() | accelerator,
        "settings": {name: getattr(options, name) for name in kept} | {"logit_spread": LOGIT_SPREAD},
        "versions": versions,
        "agreement": {"size": AGREEMENT_SIZE, **tolerances, "errors": {}},
        "case_value_tolerances": CASE_TOLERANCES,
        "cases": [],
    }


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--sizes", nargs="+", metavar="TOKENS,STUDENT/TEACHER,VOCABULARY", help=f"default: {' '.join(SIZES)}")
    add("--dtypes", nargs="+", choices=("float32", "bfloat16"), default=["float32", "bfloat16"])
    add("--losses", nargs="+", choices=LOSSES, default=list(LOSSES))
    add("--implementations", nargs="+", choices=IMPLEMENTATIONS, help="default: all for the device in any dtype")
    add("--memory-of", nargs="+", choices=IMPLEMENTATIONS, help="whose memory is measured (default: all losses')")
    add("--repetitions", type=int, default=7, help="timed passes of each implementation (default: %(default)s)")
    add("--threads", type=int, default=len(os.sched_getaffinity(0)), help="of each process (default: all cores)")
    add("--device", choices=("cpu", "cuda"), default="cpu")
    add("--trl-python", type=Path, default=".venv-trl/bin/python", help="has TRL and Liger (default: %(default)s)")
    add("--seed", type=int, default=0)
    add("--output", type=Path, default=HERE / "results" / "loss.json")
    options = parser.parse_args()
    on_cuda = options.device == "cuda"
    if options.repetitions < 3:
        parser.error(f"--repetitions {options.repetitions}: quartiles need 3 at least")
    if options.implementations is None:
        everywhere = {name: it for name, it in IMPLEMENTATIONS.items() if not it.only_when_named}
        options.implementations = [name for name, it in everywhere.items() if on_cuda or not it.only_cuda]
    # A floor's products go into memory that it holds before.
    losses = [name for name in options.implementations if IMPLEMENTATIONS[name].is_loss]
    if options.memory_of is None:
        options.memory_of = losses
    strangers = set(options.memory_of) - set(losses)
    if strangers:
        parser.error(f"--memory-of {' '.join(sorted(strangers))}: choose from the losses that run, {' '.join(losses)}")
    unfit = [name for name in options.implementations if IMPLEMENTATIONS[name].only_cuda and not on_cuda]
    if unfit:
        parser.error(f"{', '.join(unfit)} need --device cuda")
    narrow = [name for name in options.implementations if IMPLEMENTATIONS[name].only_float32_on_cpu]
    if narrow and (on_cuda or set(options.dtypes) != {"float32"}):
        parser.error(f"{', '.join(narrow)}: float32 on a CPU only; add --dtypes float32 and leave --device cuda out")
    if any(IMPLEMENTATIONS[name].is_peer for name in options.implementations) and not options.trl_python.exists():
        parser.error(f"no Python at {options.trl_python}: set it up as above, give --trl-python or --implementations")
    sizes = [(size, options.dtypes) for size in options.sizes or SIZES]
    if options.sizes is None and on_cuda:
        sizes.append((CUDA_SIZE, ["bfloat16"]))
    options.sizes = [size for size, _ in sizes]
    try:
        options.cases = [
            Case.of(size, dtype, loss) for size, dtypes in sizes for dtype in dtypes for loss in options.losses
        ]
    except ValueError:
        parser.error(f"--sizes must look like {SIZES[0]}, not {' '.join(options.sizes)}")
    return options


def main() -> None:
    options = parse()
    options.output.parent.mkdir(parents=True, exist_ok=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    console = Console()
    with tempfile.TemporaryDirectory() as folder, Progress(*columns, console=console) as progress:
        record = Benchmark(options, Path(folder), progress).run()
    loss_table.show(record, console)
    console.print(f"wrote {options.output}")


if __name__ == "__main__":
    main()
