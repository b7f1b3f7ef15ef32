"""The files of an offline Weights & Biases run. A run that is resumed has several parts, each with its own log."""

import json
import logging
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from zoo.training.files import atomic_write
from zoo.training.shell import pasted

if TYPE_CHECKING:
    from wandb.proto.wandb_internal_pb2 import Record

log = logging.getLogger(__name__)

HEADER, BLOCK = 7, 32768  # bytes of the header of a log and of each chunk; bytes of a block. A chunk is in one block
LAST_CHUNKS = (1, 4)  # kinds of chunks that end a record: a complete record, and the last part of a record
STEP = "trainer/global_step"


def offline_parts(folder: Path, run_id: str) -> list[Path]:
    """Return the folders of the parts of an offline run in a run folder, in the order in which they were written."""
    return sorted((folder / "wandb").glob(f"offline-run-*-{run_id}"))  # their names contain the time


def go_back(folder: Path, run_id: str, step: int) -> None:
    """Remove the rows from step ``step`` on from the logs of an offline run, because a resumed run logs them again.

    An incomplete record at the end of a log is removed as well. It would prevent the upload of all later parts. The
    complete log stays in the same folder under the name ``*.wandb.whole``. A part that was uploaded is not changed.

    Args:
        folder: the run folder.
        run_id: ID of the Weights & Biases run.
        step: the first step that the resumed run logs.
    """
    for part in offline_parts(folder, run_id):
        for path in part.glob("*.wandb"):
            if path.with_name(f"{path.name}.synced").exists():
                log.warning(
                    "%s was uploaded, so rows that were logged after the checkpoint stay in Weights & Biases",
                    pasted(part),
                )
                continue
            content = path.read_bytes()
            if (end := _end_before(content, step)) < len(content):
                whole = path.with_name(f"{path.name}.whole")
                if not whole.exists():
                    with atomic_write(whole) as file:  # a program that is killed here leaves no part of a copy
                        file.write(content)
                with atomic_write(path) as file:
                    file.write(content[:end])


def records(content: bytes) -> Iterator[tuple[int, int, "Record"]]:
    """Yield the complete records of a log, each with the positions at which it begins and ends, in bytes.

    A log has a header and then records in the log format of LevelDB. A damaged record ends the log.
    """
    from wandb.proto.wandb_internal_pb2 import Record

    at, begin, parts = HEADER, None, b""
    while at + HEADER <= len(content):
        if (left := BLOCK - at % BLOCK) < HEADER:  # the rest of a block is too short for a chunk
            at += left
            continue
        _, length, kind = struct.unpack("<IHB", content[at : at + HEADER])
        begin = at if begin is None else begin
        parts, at = parts + content[at + HEADER : at + HEADER + length], at + HEADER + length
        if at > len(content) or kind == 0:
            return
        if kind in LAST_CHUNKS:
            record = Record()
            try:
                record.ParseFromString(parts)
            except Exception:  # protobuf, which wandb brings, raises its own class of error
                return
            yield begin, at, record
            begin, parts = None, b""


def _end_before(content: bytes, step: int) -> int:
    """Return the position of the first row from ``step`` on, or the end of the last complete record."""
    end = HEADER
    for begin, after, record in records(content):
        for item in record.history.item:
            if (item.key or "/".join(item.nested_key)) == STEP and json.loads(item.value_json) >= step:
                return begin
        end = after
    return end
