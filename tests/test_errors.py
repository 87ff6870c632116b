import re
import tomllib
from pathlib import Path

import pytest

from tutelage.errors import closest, how_to_install, nearest

METHODS = ["gkd", "seqkd", "supervised_kd"]


@pytest.mark.parametrize(
    ("word", "found"), [("gdk", "gkd"), ("supervised", "supervised_kd"), ("zzz", None), ("", None)]
)
def test_closest(word, found):
    assert closest(word, METHODS) == found


def test_nearest_names_the_closest_and_all_others():
    assert nearest("gdk", METHODS) == "did you mean 'gkd'? known are gkd, seqkd, supervised_kd"
    assert nearest("zzz", METHODS) == "known are gkd, seqkd, supervised_kd"


def test_nearest_writes_the_known_out_as_told():
    usage = {"jsd": "jsd(0.5)", "kl": "kl"}
    assert nearest("jds", usage, usage) == "did you mean jsd(0.5)? known are jsd(0.5), kl"


def test_only_extras_that_exist_are_offered():
    root = Path(__file__).parents[1]
    extras = tomllib.loads((root / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    sources = "".join(path.read_text() for path in (root / "src").rglob("*.py"))
    offered = set(re.findall(r"how_to_install\('([\w-]+)'\)", sources)) | {"wandb", "trackio", "tensorboard"}
    assert "lm-eval" in offered
    assert offered <= set(extras)
    assert how_to_install("wandb") == (
        'pip install -e ".[wandb]" in a checkout of Tutelage, pip install "tutelage[wandb]" elsewhere'
    )
