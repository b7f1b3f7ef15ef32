"""Tests of atomic writes. After an error, the old file is unchanged, and no other file remains."""

import errno

import pytest

from zoo.training.files import FileNotWritten, atomic_write


@pytest.mark.parametrize(
    "error",
    [
        ValueError("a bug"),
        KeyboardInterrupt(),
        ConnectionResetError(errno.ECONNRESET, "a download that breaks off"),
        FileNotFoundError(errno.ENOENT, "no such file", "another.txt"),
        OSError(errno.ENOSPC, "No space left on device"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_what_fails_meanwhile_leaves_what_was_there_and_nothing_else(error, tmp_path):
    """An error of the program during a write is raised unchanged, and not as FileNotWritten."""
    path = tmp_path / "a.txt"
    path.write_text("before", encoding="utf-8")

    def write():
        with atomic_write(path) as file:
            file.write(b"half of it")
            raise error

    with pytest.raises(type(error)) as raised:
        write()
    assert raised.value is error and not isinstance(error, FileNotWritten)
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"] and path.read_text(encoding="utf-8") == "before"


def test_a_file_is_there_once_all_is_written(tmp_path):
    path = tmp_path / "new" / "folder" / "a.txt"
    with atomic_write(path) as file:
        file.write(b"all of it")
        assert not path.exists()
    assert path.read_bytes() == b"all of it" and len(list(path.parent.iterdir())) == 1


def test_a_place_where_no_file_can_be_is_named(tmp_path):
    (tmp_path / "file").write_text("", encoding="utf-8")
    for path in (tmp_path, tmp_path / "file" / "inside", tmp_path / ("x" * 300)):
        with pytest.raises(FileNotWritten) as raised, atomic_write(path):
            raise AssertionError("it was opened")
        assert raised.value.filename == str(path) and raised.value.errno and raised.value.strerror
    assert [p.name for p in tmp_path.iterdir()] == ["file"]
