"""What a result must say about the process and the machine it came from. Standard library only: every worker imports it."""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import statistics
import sys
from datetime import date
from importlib import metadata
from pathlib import Path
from typing import Any


def peak_memory_mb() -> float:
    """Largest resident memory of this process so far (VmHWM: interpreter, libraries, weights, everything), in MiB.

    Read from /proc and not from getrusage, whose ru_maxrss a process inherits from the one that started it.
    """
    return _status_kb("VmHWM") / 1024


def resident_memory_mb() -> float:
    """Resident memory of this process now, in MiB."""
    return _status_kb("VmRSS") / 1024


def versions(*packages: str) -> dict[str, str]:
    """Installed versions of Python and these packages."""
    return {"python": platform.python_version(), **{name: metadata.version(name) for name in packages}}


def spread(values: list[float]) -> dict[str, float]:
    """Median, quartiles and range."""
    low, _, high = statistics.quantiles(values, n=4) if len(values) > 1 else (values[0],) * 3
    names = ("median", "quartile_1", "quartile_3", "min", "max")
    return dict(zip(names, (statistics.median(values), low, high, min(values), max(values)), strict=True))


def describe() -> dict[str, Any]:
    """Processor, the features that decide how fast bfloat16 is, cores this process may use, and memory; no names."""
    processor = Path("/proc/cpuinfo").read_text()
    fields = dict(_split(line) for line in processor.splitlines() if ":" in line)
    features = [f for f in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if f in fields.get("flags", "").split()]
    memory = dict(_split(line) for line in Path("/proc/meminfo").read_text().splitlines())
    return {
        "processor": fields.get("model name", platform.machine()),
        "features": features,
        "cores": len(os.sched_getaffinity(0)),
        "memory_gb": round(int(memory["MemTotal"].split()[0]) / 2**20, 1),
        "system": f"{platform.system()} {platform.release().split('-')[0]}",
    }


def options(description: str | None, repetitions: int, **choices: tuple[str, ...]) -> argparse.Namespace:
    """The command line of a small benchmark: repetitions, and threads, all cores unless given.

    Args:
        description: for the help.
        repetitions: unless given.
        choices: further options, each with its values, the first of which is the default.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=repetitions)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    for name, values in choices.items():
        parser.add_argument(f"--{name}", choices=values, default=values[0])
    return parser.parse_args()


def write(path: Path, settings: dict[str, Any], figures: dict[str, Any]) -> None:
    """The record of the running script: its name and arguments, the machine, torch's version, its settings and what it found."""
    command = shlex.join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *sys.argv[1:]])
    about = {"command": command, "date": date.today().isoformat(), "machine": describe(), "settings": settings}
    path.write_text(json.dumps({**about, "versions": versions("torch"), **figures}, indent=1) + "\n", encoding="utf-8")


def _split(line: str) -> tuple[str, str]:
    name, _, value = line.partition(":")
    return name.strip(), value.strip()


def _status_kb(field: str) -> int:
    fields = dict(_split(line) for line in Path("/proc/self/status").read_text().splitlines())
    return int(fields[field].split()[0])
