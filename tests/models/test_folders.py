from __future__ import annotations

from pathlib import Path

import pytest

from tutelage.models.folders import looked_up, whole_folder


def contents(folder: Path) -> dict[str, str]:
    """Path below `folder` -> text."""
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}


def test_where_a_relative_path_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert looked_up("models/student") == f" (looked up from {tmp_path})"
    assert looked_up("/models/student") == looked_up("~/models/student") == ""


def write(folder: Path, text: str) -> None:
    with whole_folder(folder) as partial:
        (partial / "deep").mkdir()
        (partial / "deep" / "file").write_text(text)


def test_nothing_has_the_name_before_all_is_written(tmp_path: Path) -> None:
    folder = tmp_path / "not" / "yet"
    with whole_folder(folder) as partial:
        (partial / "file").write_text("new")
        assert not folder.exists()
        assert partial.parent == folder.parent  # of one file system: a rename moves no data
    assert contents(tmp_path) == {"not/yet/file": "new"}
    assert not partial.exists()


def test_an_earlier_folder_is_replaced(tmp_path: Path) -> None:
    write(tmp_path / "it", "old")
    (tmp_path / "it" / "stale").touch()
    write(tmp_path / "it", "new")
    assert contents(tmp_path) == {"it/deep/file": "new"}


@pytest.mark.parametrize("there", [False, True])
def test_an_error_leaves_what_was_there(there: bool, tmp_path: Path) -> None:
    if there:
        write(tmp_path / "it", "old")

    def give_up() -> None:
        with whole_folder(tmp_path / "it") as partial:
            (partial / "file").write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        give_up()
    assert contents(tmp_path) == ({"it/deep/file": "old"} if there else {})
    assert [path.name for path in tmp_path.iterdir()] == (["it"] if there else [])


def test_a_rename_that_fails_puts_the_earlier_folder_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "it", "old")
    original = Path.rename

    def rename(self: Path, target: Path) -> Path:
        if self.name == ".writing-it":
            raise OSError(5, "Input/output error")
        return original(self, target)

    monkeypatch.setattr(Path, "rename", rename)
    with pytest.raises(OSError, match="Input/output error"):
        write(tmp_path / "it", "new")
    assert contents(tmp_path) == {"it/deep/file": "old"}


def test_what_a_kill_left_is_settled_before_anything_is_written(tmp_path: Path) -> None:
    write(tmp_path / "it", "old")
    (tmp_path / "it").rename(tmp_path / ".replaced-it")  # killed between the two renames
    write(tmp_path / ".writing-it", "half")
    with whole_folder(tmp_path / "it") as partial:
        assert contents(tmp_path) == {"it/deep/file": "old"}
        (partial / "file").write_text("new")
    assert contents(tmp_path) == {"it/file": "new"}


def test_a_link_stays_one(tmp_path: Path) -> None:
    write(tmp_path / "it", "old")
    (tmp_path / "link").symlink_to(tmp_path / "it")
    write(tmp_path / "link", "new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "it" / "deep" / "file").read_text() == "new"
