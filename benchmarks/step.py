"""Seconds a step and peak memory of on-policy distillation, Tutelage beside TRL; native rollouts beside `generate`.

    python3 -m venv .venv-trl && .venv-trl/bin/pip install -c constraints.txt -r benchmarks/requirements-trl.txt
    .venv/bin/python benchmarks/smollm2.py cache/smollm2
    .venv/bin/python benchmarks/step.py --teacher cache/smollm2 --data GSM8K

The job: SmolLM2-135M-Instruct teaches its own 10-layer cut on GSM8K prompts; batch 4, 64 new tokens, JSD(0.5), bfloat16,
student data fraction 1. benchmarks/README.md says what is counted and how the work is made equal.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import shutil
import statistics
import subprocess
import sys
from datetime import date
from pathlib import Path
from typing import Any

import machine

HERE = Path(__file__).resolve().parent
SYSTEMS = {"tutelage": "step_tutelage.py", "trl_gkd": "step_trl.py", "trl_distillation": "step_trl.py"}


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--teacher", default="cache/smollm2", help="Hugging Face folder or GGUF file (default: %(default)s)")
    add("--data", default="openai/gsm8k", help="GSM8K as a file, folder or hub name (default: %(default)s)")
    add("--trl-python", type=Path, default=".venv-trl/bin/python", help="Python that has TRL (default: %(default)s)")
    add("--systems", nargs="*", choices=SYSTEMS, default=list(SYSTEMS), help="which training steps to time")
    add("--no-rollouts", action="store_true", help="leave out the comparison of the rollouts alone")
    add("--repetitions", type=int, default=5, help="processes per system, interleaved (default: %(default)s)")
    add("--steps", type=int, default=4, help="timed steps a repetition (default: %(default)s)")
    add("--warm-up", type=int, default=1, help="untimed steps before them (default: %(default)s)")
    add("--batch", type=int, default=4)
    add("--new-tokens", type=int, default=64)
    add("--layers", type=int, default=10, help="layers of the teacher that the student keeps (default: %(default)s)")
    add("--beta", type=float, default=0.5)
    add("--learning-rate", type=float, default=1e-5)
    add("--seed", type=int, default=0)
    add("--threads", type=int, default=len(os.sched_getaffinity(0)), help="of each process (default: all cores)")
    add("--gradient-checkpointing", action="store_true", help="in all systems; TRL's default is on, here it is off")
    add("--trl-weights", choices=("float32", "bfloat16"), default="float32", help="TRL's student; float32: its default")
    add("--work", type=Path, default=Path("cache/benchmark-step"), help="scratch folder, emptied first")
    add("--output", type=Path, default=HERE / "results" / "step.json")
    return parser.parse_args()


def make_spec(options: argparse.Namespace) -> dict[str, Any]:
    """What the workers are told."""
    given = Path(options.teacher).expanduser().resolve()
    if not given.exists():
        sys.exit(f"error: no model at {options.teacher}; make one with benchmarks/smollm2.py, or give --teacher")
    if any(s.startswith("trl") for s in options.systems) and not options.trl_python.exists():
        sys.exit(f"error: no Python at {options.trl_python}; see the top of benchmarks/requirements-trl.txt")
    work = options.work.resolve()
    is_gguf = given.suffix == ".gguf"
    data = Path(options.data).expanduser()
    skipped = ("teacher", "data", "trl_python", "work", "output", "systems")
    return {
        **{name: value for name, value in vars(options).items() if name not in skipped},
        "work": str(work),
        "gguf": str(given) if is_gguf else None,
        "teacher": str(work / "teacher") if is_gguf else str(given),
        "data": str(data.resolve()) if data.exists() else options.data,
    }


def call(python: Path | str, script: str, spec: dict[str, Any]) -> Any:
    """Runs a worker to its end and returns its result. One worker runs at a time."""
    work = Path(spec["work"])
    request, answer = work / "spec.json", work / "result.json"
    request.write_text(json.dumps(spec))
    answer.unlink(missing_ok=True)
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": str(spec["threads"]),
        "TOKENIZERS_PARALLELISM": "false",
        "TRANSFORMERS_VERBOSITY": "error",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "CUDA_VISIBLE_DEVICES": "",
    }
    command = [str(python), str(HERE / script), str(request), str(answer)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        sys.exit(f"error: {script} failed ({spec.get('system', 'preparation')}):\n{done.stderr[-4000:]}")
    return json.loads(answer.read_text()) if answer.exists() else None


def time_steps(options: argparse.Namespace, spec: dict[str, Any]) -> dict[str, Any]:
    """All repetitions of all systems, interleaved: A B C, B C A, C A B, ..."""
    runs: dict[str, list[dict[str, Any]]] = {system: [] for system in options.systems}
    for repetition in range(options.repetitions):
        turn = repetition % len(options.systems)
        for system in options.systems[turn:] + options.systems[:turn]:
            python = options.trl_python if system.startswith("trl") else sys.executable
            load = os.getloadavg()[0]
            result = call(python, SYSTEMS[system], {**spec, "system": system})
            runs[system].append({"load_before": load, **result})
            seconds = statistics.median(result["seconds"])
            print(
                f"repetition {repetition + 1}  {system:17} {seconds:7.2f} s a step  {result['peak_mb']:6.0f} MB",
                flush=True,
            )
    check_equal_work(runs, options.batch * options.new_tokens)
    return {
        system: {
            "seconds_a_step": machine.spread([s for run in per_system for s in run["seconds"]]),
            "peak_mb": machine.spread([run["peak_mb"] for run in per_system]),
            "runs": per_system,
        }
        for system, per_system in runs.items()
    }


def check_equal_work(runs: dict[str, list[dict[str, Any]]], completion: int) -> None:
    """Stops unless every step of every run had the same prompts and `completion` new tokens."""
    every = [run for repetitions in runs.values() for run in repetitions]
    prompts = {tuple(run["prompt_tokens"]) for run in every}
    completions = {count for run in every for count in run["completion_tokens"]}
    if len(prompts) != 1 or completions != {completion}:
        sys.exit(
            f"error: unequal work: prompt tokens {prompts}, completion tokens a step {completions}, not {completion}"
        )


def show_steps(steps: dict[str, Any]) -> None:
    print(f"\n{'':17} {'s a step':>8}  {'quartiles':>13}  {'range':>13}  {'ratio':>5}  {'peak MB':>7}  {'ratio':>5}")
    base = steps[next(iter(steps))]
    for system, row in steps.items():
        time, memory = row["seconds_a_step"], row["peak_mb"]
        print(
            f"{system:17} {time['median']:8.2f}  {time['quartile_1']:6.2f}-{time['quartile_3']:<6.2f}  "
            f"{time['min']:6.2f}-{time['max']:<6.2f}  {time['median'] / base['seconds_a_step']['median']:5.2f}  "
            f"{memory['median']:7.0f}  {memory['median'] / base['peak_mb']['median']:5.2f}"
        )


def show_rollouts(rows: list[dict[str, Any]]) -> None:
    print(f"\n{'rollouts':18} {'native s':>14} {'generate s':>16}  {'generate / native':>17}")
    for row in rows:
        times = {name: machine.spread(seconds) for name, seconds in row["seconds"].items()}
        shown = {name: f"{t['median']:.2f} ({t['min']:.2f}-{t['max']:.2f})" for name, t in times.items()}
        ratio = times["generate"]["median"] / times["native"]["median"]
        print(f"{row['model']:8} batch {row['batch']:<3} {shown['native']:>16} {shown['generate']:>17}  {ratio:15.2f}")


def main() -> None:
    options = parse()
    spec = make_spec(options)
    shutil.rmtree(options.work, ignore_errors=True)
    options.work.mkdir(parents=True)
    call(sys.executable, "step_prepare.py", spec)
    steps = time_steps(options, spec) if options.systems else {}
    rollouts = [] if options.no_rollouts else call(sys.executable, "step_rollouts.py", spec)
    for rows in rollouts:
        rows["summary"] = {name: machine.spread(seconds) for name, seconds in rows["seconds"].items()}
    # Folders of one machine mean nothing on another: the last part of a path is enough to repeat the command.
    words = [Path(word).name if Path(word).is_absolute() else word for word in sys.argv]
    private = ("work", "gguf", "teacher", "data")
    record = {
        "command": shlex.join(["python", "benchmarks/step.py", *words[1:]]),
        "date": date.today().isoformat(),
        "machine": machine.describe(),
        "settings": {name: value for name, value in spec.items() if name not in private},
        "steps": steps,
        "rollouts": rollouts,
    }
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(record, indent=1) + "\n")
    shutil.rmtree(options.work)
    if steps:
        show_steps(steps)
    if rollouts:
        show_rollouts(rollouts)
    print(f"\nwrote {options.output}")


if __name__ == "__main__":
    main()
