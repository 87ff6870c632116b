"""The rollout log: round trip, torn and damaged lines, replay."""

import json

import pytest

from tutelage.errors import UserError
from tutelage.rollout.log import RolloutLog
from tutelage.types import Rollout

WRITTEN = Rollout((5, 6), (7, 8, 2), (-0.1, -1 / 3, -1e-12), "stop", 3, 11, 2, "student")
GIVEN = Rollout((5,), (9, 2), None, "data", -1, 12, 0, "dataset")
STEPS = {0: [WRITTEN, GIVEN], 1: [GIVEN], 2: [WRITTEN]}
SECONDS = {0: 12.25, 1: 3e-05, 2: 0.1}


@pytest.fixture
def folder(tmp_path):
    """A log of three steps, closed."""
    log = RolloutLog(tmp_path / "rollouts")
    for step, rollouts in STEPS.items():
        log.append(step, rollouts, SECONDS[step])
    log.close()
    return tmp_path / "rollouts"


def test_round_trip(folder):
    log = RolloutLog(folder)
    assert dict(log) == STEPS
    assert log.read(0) == [WRITTEN, GIVEN]
    assert [step in log for step in (0, 2, 3)] == [True, True, False]
    assert {step: log.seconds(step) for step in STEPS} == SECONDS


def test_a_step_is_readable_as_soon_as_it_is_written(tmp_path):
    log = RolloutLog(tmp_path)
    assert list(log) == []
    log.append(5, [WRITTEN], 0.5)
    assert log.read(5) == [WRITTEN]
    assert log.seconds(5) == 0.5
    assert RolloutLog(tmp_path).read(5) == [WRITTEN]
    log.sync()


def test_lines_are_plain_json(folder):
    lines = [json.loads(line) for line in (folder / "rollouts.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [0, 1, 2]
    assert [line["seconds"] for line in lines] == [12.25, 3e-05, 0.1]
    assert lines[0]["rollouts"][0]["completion_ids"] == [7, 8, 2]


@pytest.mark.parametrize("cut", [1, 2, 40, -1])
def test_a_torn_last_line_is_cut_off(folder, cut, caplog):
    path = folder / "rollouts.jsonl"
    data = path.read_bytes()
    last = data[:-1].rindex(b"\n") + 1
    path.write_bytes(data[:-cut] if cut > 0 else data[: last + 1])
    log = RolloutLog(folder)
    assert dict(log) == {0: STEPS[0], 1: STEPS[1]}
    assert path.read_bytes() == data[:last]
    log.append(2, [GIVEN], 1.0)
    log.close()
    assert dict(RolloutLog(folder)) == {0: STEPS[0], 1: STEPS[1], 2: [GIVEN]}
    assert not caplog.records  # a kill is no reason to warn


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b'"completion_ids":[9,2]', b'"completion_ids":[9,3]'),
        (b'"step":1', b'"stxp":1'),
        (b'"crc":', b'"crc" :'),
        (b'"seconds":3', b'"seconds":3.'),
        (b'"step":1', b'\xff\xfe\x00p":1'),
        (b'"rollouts":[', b'"rollouts":{'),
    ],
)
def test_everything_from_a_damaged_line_on_is_cut_off_and_told(folder, old, new, caplog):
    path = folder / "rollouts.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    damaged = lines[1].replace(old, new)
    assert damaged != lines[1]
    for behind in (1, 0):
        path.write_bytes(lines[0] + damaged + lines[2] * behind)
        caplog.clear()
        assert dict(RolloutLog(folder)) == {0: STEPS[0]}
        assert path.read_bytes() == lines[0]
        told = f"{path}: line 2 is damaged, and is cut off with the {behind} behind it; of their steps, "
        assert [record.getMessage()[: len(told)] for record in caplog.records] == [told]


def test_a_step_is_written_once(folder):
    log = RolloutLog(folder)
    with pytest.raises(UserError, match=r"rollouts\.jsonl already holds step 1; go on with the run \(resume\)"):
        log.append(1, [GIVEN], 1.0)
    assert dict(log) == STEPS
    assert log.seconds(1) == SECONDS[1]


def test_lines_without_seconds_are_whole_but_have_no_times(folder):
    path = folder / "rollouts.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(lines[0] + lines[1].replace(b'"seconds":3e-05,', b"") + lines[2])
    log = RolloutLog(folder)
    assert dict(log) == STEPS
    assert log.seconds(2) == SECONDS[2]
    with pytest.raises(UserError, match=r"rollouts\.jsonl holds step 1, but not the seconds it took.*\(overwrite"):
        log.seconds(1)
