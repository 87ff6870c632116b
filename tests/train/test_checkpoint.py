from __future__ import annotations

import errno
import json
import os
import shutil
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tutelage.errors import UserError
from tutelage.train import checkpoint, config_io
from tutelage.train.checkpoint import Checkpoints, is_disk_full, require_space
from tutelage.train.config import Config


def config(**raw: Any) -> Config:
    return config_io.build({"student": "s", "teacher": "t", **raw})


@pytest.fixture
def checkpoints(tmp_path: Path) -> Checkpoints:
    return Checkpoints(tmp_path / "checkpoints", config())


def state(value: float) -> dict[str, Any]:
    return {"optimizer": {"weights": {"w": torch.full((3,), value)}, "optimizers": [{"betas": (0.9, 0.95), "step": 3}]}}


def test_a_round_trip_with_the_random_state(checkpoints: Checkpoints) -> None:
    assert checkpoints.load() is None
    torch.manual_seed(1)
    checkpoints.save(5, state(2.5))
    expected = torch.rand(3)
    torch.manual_seed(2)
    loaded = checkpoints.load()
    assert loaded is not None
    step, saved = loaded
    assert step == 5
    assert saved["optimizer"]["weights"]["w"].tolist() == [2.5] * 3
    assert saved["optimizer"]["optimizers"] == [{"betas": (0.9, 0.95), "step": 3}]
    assert list(saved) == ["optimizer"]
    assert torch.equal(torch.rand(3), expected)


def test_the_oldest_go(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, config(**{"train.keep_checkpoints": 3}))
    kept = []
    for step in (2, 4, 6, 8):
        checkpoints.save(step, state(step))
        kept.append(checkpoints.steps())
    assert kept == [[2], [2, 4], [2, 4, 6], [4, 6, 8]]


def test_a_checkpoint_is_never_written_twice(checkpoints: Checkpoints) -> None:
    checkpoints.save(1, state(1.0))
    checkpoints.save(1, state(9.0))
    loaded = checkpoints.load()
    assert loaded is not None
    assert loaded[1]["optimizer"]["weights"]["w"][0] == 1.0


def test_leftovers_of_a_kill_are_ignored_and_removed(checkpoints: Checkpoints) -> None:
    checkpoints.save(3, state(3.0))
    leftover = checkpoints.folder / ".writing-00000006"
    leftover.mkdir()
    (leftover / "state.pt").write_bytes(b"half")
    (checkpoints.folder / "step-backup").mkdir()  # a person's own
    assert checkpoints.steps() == [3]
    loaded = checkpoints.load()
    assert loaded is not None
    assert loaded[0] == 3
    assert sorted(p.name for p in checkpoints.folder.iterdir()) == ["step-00000003", "step-backup"]


@pytest.mark.parametrize(("earlier", "advice"), [([], "to start over"), ([2, 4], "to go on from step 4")])
def test_a_truncated_state_names_the_folder_and_what_to_do(
    earlier: list[int], advice: str, checkpoints: Checkpoints
) -> None:
    for step in [*earlier, 6]:
        checkpoints.save(step, state(step))
    newest = checkpoints.folder / "step-00000006"
    os.truncate(newest / "state.pt", 100)
    with pytest.raises(UserError) as raised:
        checkpoints.load()
    assert str(raised.value) == (
        f"checkpoint {newest} is damaged: state.pt is truncated or changed; delete that folder {advice}"
    )
    shutil.rmtree(newest)
    loaded = checkpoints.load()
    assert (loaded and loaded[0]) == (4 if earlier else None)


def test_one_flipped_bit_is_found(checkpoints: Checkpoints) -> None:
    checkpoints.save(6, state(6.0))
    path = checkpoints.folder / "step-00000006" / "state.pt"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match="truncated or changed"):
        checkpoints.load()


@pytest.mark.parametrize("content", ["{", "[]", "{}", None])
def test_a_manifest_that_cannot_be_read(content: str | None, checkpoints: Checkpoints) -> None:
    checkpoints.save(6, state(6.0))
    manifest = checkpoints.folder / "step-00000006" / "manifest.json"
    if content is None:
        manifest.unlink()
    else:
        manifest.write_text(content)
    with pytest.raises(
        UserError, match=r"step-00000006 has no readable manifest\.json; delete that folder to start over"
    ):
        checkpoints.load()


def test_another_configuration_is_named_key_by_key(tmp_path: Path) -> None:
    Checkpoints(tmp_path, config()).save(6, state(6.0))
    other = config(seed=3, divergence="jsd(0.9)", **{"train.learning_rate": 1e-4, "task.options": {"shots": 4}})
    with pytest.raises(UserError) as raised:
        Checkpoints(tmp_path, other).load()
    for difference in (
        "divergence: None there, 'jsd(0.9)' now",
        "seed: 0 there, 3 now",
        "train.learning_rate: 0.0003 there, 0.0001 now",
        "task.options.shots: None there, 4 now",
    ):
        assert difference in str(raised.value)
    assert str(raised.value).endswith("choose another output, or start over (overwrite)")
    free = config(**{"train.checkpoint_every": 7, "eval.limit": 3, "log.progress": False, "output": "elsewhere"})
    assert Checkpoints(tmp_path, free).load() is not None


class _Full:
    """A file system without space behind an open file."""

    def __init__(self, file: Any) -> None:
        self.file = file

    def write(self, content: bytes) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)


def real_torch_save_on_a_full_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    real = torch.save
    monkeypatch.setattr(checkpoint.torch, "save", lambda content, file: real(content, _Full(file)))


def full_at_the_flush(monkeypatch: pytest.MonkeyPatch) -> None:
    def fsync(handle: int) -> None:
        raise OSError(errno.EDQUOT, "Disk quota exceeded")

    monkeypatch.setattr(checkpoint.os, "fsync", fsync)


@pytest.mark.parametrize("fill", [real_torch_save_on_a_full_disk, full_at_the_flush])
def test_a_full_disk_leaves_the_earlier_checkpoints(
    fill: Callable[[pytest.MonkeyPatch], None], checkpoints: Checkpoints, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoints.save(2, state(2.0))
    checkpoints.save(4, state(4.0))
    with monkeypatch.context() as patched:
        fill(patched)
        with pytest.raises(UserError, match=r"no space left on the disk of .* step 6; .* from step 4 \(resume\)"):
            checkpoints.save(6, state(6.0))
    assert sorted(p.name for p in checkpoints.folder.iterdir()) == ["step-00000002", "step-00000004"]
    loaded = checkpoints.load()
    assert loaded is not None
    assert loaded[1]["optimizer"]["weights"]["w"][0] == 4.0


def test_other_failures_stay_what_they_are(checkpoints: Checkpoints, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(content: Any, file: Any) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(checkpoint.torch, "save", broken)
    with pytest.raises(RuntimeError, match="a bug"):
        checkpoints.save(6, state(6.0))
    assert list(checkpoints.folder.iterdir()) == []


def test_what_a_full_disk_looks_like() -> None:
    assert is_disk_full(OSError(errno.ENOSPC, "No space left on device"))
    assert is_disk_full(Exception("Error while serializing: I/O error: No space left on device (os error 28)"))
    assert not is_disk_full(OSError(errno.EACCES, "Permission denied"))
    assert not is_disk_full(ValueError("os error 28 times"))


def test_space_is_required_before_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint.shutil, "disk_usage", lambda folder: types.SimpleNamespace(free=5 * 2**20))
    require_space(tmp_path, 5 * 2**20)
    with pytest.raises(UserError) as raised:
        require_space(tmp_path, 3000 * 2**20)
    assert str(raised.value) == (
        f"the disk of {tmp_path} has 5 MB free, the run's checkpoints and the student need about 3,000 MB; free some, choose "
        "another output, or lower train.keep_checkpoints"
    )


def test_the_manifest_says_what_it_belongs_to(checkpoints: Checkpoints) -> None:
    checkpoints.save(6, state(6.0))
    manifest = json.loads((checkpoints.folder / "step-00000006" / "manifest.json").read_text())
    assert manifest["step"] == 6
    assert manifest["identity"]["student"] == "s"
    assert "output" not in manifest["identity"]
