"""Tests of the logs of offline Weights & Biases runs, from which a resumed run removes rows. The logs are made here."""

import struct

import pytest
from wandb.proto.wandb_internal_pb2 import Record

from zoo.training.wandb_parts import BLOCK, HEADER, STEP, go_back, records

LONG = 3 * BLOCK  # characters of a value, so that its record has parts in several blocks


def row(step, text="", nested=False):
    record = Record()
    item = record.history.item.add()
    if nested:
        item.nested_key.extend(STEP.split("/"))
    else:
        item.key = STEP
    item.value_json = str(step)
    record.history.item.add(key="text", value_json=f'"{text}"')
    return record


def log_of(*rows):
    """Return the bytes of a log with these records. Records are split at the ends of blocks."""
    content = bytes(HEADER)
    for record in rows:
        data, first = record.SerializeToString(), True
        while first or data:
            left = BLOCK - len(content) % BLOCK
            if left < HEADER:
                content += bytes(left)
                continue
            part, data = data[: left - HEADER], data[left - HEADER :]
            kind = (1 if first else 4) if not data else (2 if first else 3)
            content, first = content + struct.pack("<IHB", 0, len(part), kind) + part, False
    return content


def part(folder, time, content):
    path = folder / "wandb" / f"offline-run-{time}-abc" / "run-abc.wandb"
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    return path


def characters(left):
    """Return the number of characters of a second row that leaves ``left`` bytes of the first block."""
    return next(n for n in range(BLOCK - 200, BLOCK) if len(log_of(row(0), row(1, "a" * n))) == BLOCK - left)


@pytest.mark.parametrize("text", [0, LONG, *map(characters, range(9))])
def test_rows_from_a_step_on_are_removed_and_the_complete_log_is_kept(text, tmp_path):
    rows = [row(0), row(1, "a" * text), row(2, "b" * text, nested=True), row(3)]
    path = part(tmp_path, "20261130_100000", log_of(*rows))
    for step in (4, 2, 1):
        go_back(tmp_path, "abc", step)
        assert path.read_bytes().rstrip(b"\0") == log_of(*rows[:step])  # zeros fill the end of a block
        assert [record for _, _, record in records(path.read_bytes())] == rows[:step]
    assert path.with_name("run-abc.wandb.whole").read_bytes() == log_of(*rows)
    assert len(list(path.parent.iterdir())) == 2


DAMAGED = struct.pack("<IHB", 0, 3, 1) + b"\xff\xff\xff"  # a record of three bytes that are no record
ENDS = [bytes(3), bytes(500), log_of(row(1, "a" * LONG))[HEADER:-1], b"\1\2\3\4\377\1\1a", DAMAGED]


@pytest.mark.parametrize("end", ENDS)
def test_an_incomplete_or_damaged_end_is_removed(end, tmp_path):
    path = part(tmp_path, "20261130_100000", log_of(row(0)) + end)
    go_back(tmp_path, "abc", 9)
    assert path.read_bytes() == log_of(row(0))


def test_all_parts_are_cut_except_those_that_were_uploaded_and_those_of_other_runs(tmp_path):
    paths = [part(tmp_path, f"20261130_10000{n}", log_of(row(n), row(n + 1))) for n in range(3)]
    other = tmp_path / "wandb" / "offline-run-20261130_100009-xyz" / "run-xyz.wandb"
    other.parent.mkdir()
    other.write_bytes(log_of(row(5)))
    paths[1].with_name("run-abc.wandb.synced").touch()
    go_back(tmp_path, "abc", 1)
    assert [path.read_bytes() for path in paths] == [log_of(row(0)), log_of(row(1), row(2)), log_of()]
    assert other.read_bytes() == log_of(row(5))
