"""Trains the two models that the package carries, and puts them in its assets.

    python recipes/arithmetic/train_assets.py

The teacher takes most of the time: about a quarter of an hour on two free cores. A run that is finished is not run
again, one that was stopped goes on from its checkpoint; --runs names the folder they lie in.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
from pathlib import Path

import torch
import transformers

from tutelage.quickstart.settings import ASSETS
from tutelage.run import run
from tutelage.train import config_io

HERE = Path(__file__).parent
# The teacher's weights are read only: half precision keeps the package small. The student goes on training.
DTYPES = {"teacher": torch.bfloat16, "student": torch.float32}
MOST_BYTES = 5_000_000
FIGURES = re.compile(r"(?<=<!-- figures -->\n).*?(?=<!-- end of figures -->)", re.DOTALL)


def train(name: str, folder: Path, cache: Path) -> None:
    """Runs the recipe of a model, from its checkpoint where there is one; does nothing when it is finished."""
    if (folder / "evaluation" / "after" / "results.json").exists():
        return
    own = {"student": str(cache / name), "output": str(folder), "resume": (folder / "run.json").exists()}
    run(config_io.build(config_io.deep_merge(config_io.load_yaml(HERE / f"{name}.yaml"), own)))


def install(name: str, run_folder: Path, assets: Path) -> None:
    """Copies a finished model with its tokenizer to the assets, in the precision it is carried in.

    Raises:
        SystemExit: the weights are larger than the package may carry.
    """
    target = assets / name
    model = transformers.AutoModelForCausalLM.from_pretrained(run_folder / "model", dtype=DTYPES[name])
    model.save_pretrained(target)
    transformers.AutoTokenizer.from_pretrained(run_folder / "model").save_pretrained(target)
    size = (target / "model.safetensors").stat().st_size
    if size > MOST_BYTES:
        sys.exit(f"{target}/model.safetensors has {size:,} bytes; the package carries at most {MOST_BYTES:,}")
    card = target / "README.md"
    card.write_text(FIGURES.sub(lambda _: figures(run_folder), card.read_text(encoding="utf-8")), encoding="utf-8")
    print(f"{target}: {model.num_parameters():,} parameters, {size:,} bytes")


def figures(run_folder: Path) -> str:
    """The table of the model card, from the evaluation that ended the run."""
    rows = json.loads((run_folder / "evaluation" / "after" / "results.json").read_text())["rows"]
    lines = [
        f"| {row['decoding']} | {row['value']:.1f} | {row['interval']['low']:.1f} to {row['interval']['high']:.1f} "
        f"| {row['values']['valid_format']:.1f} | {row['examples']} |\n"
        for row in rows
    ]
    head = "| decoding | accuracy, % | 95% interval | valid format, % | validation problems |\n| --- | --- | --- | --- | --- |\n"
    return head + "".join(lines)


def main() -> None:
    """Trains what is missing and installs both models."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="folder of the two training runs")
    parser.add_argument("--cache", type=Path, default=Path("cache/arithmetic"), help="folder of the fresh models")
    parser.add_argument("--assets", type=Path, default=ASSETS, help="where the finished models go")
    options = parser.parse_args()
    subprocess.run([sys.executable, HERE / "prepare.py", "--output", options.cache], check=True)
    for name in DTYPES:
        train(name, options.runs / f"arithmetic-{name}", options.cache)
        install(name, options.runs / f"arithmetic-{name}", options.assets)


if __name__ == "__main__":
    main()
