"""The one place where errors are shown to people."""

import errno
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from zoo.checks.errors import UserError
from zoo.training.processes import speaker

FULL_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
NOT_ALLOWED = (errno.EACCES, errno.EPERM, errno.EROFS)
SHOW_ALL = os.environ.get("HYDRA_FULL_ERROR") == "1"  # what Hydra refuses keeps its traceback
CLOSED_PIPE = 128 + 13  # the status of a program that SIGPIPE ends


@contextmanager
def errors_for_people(run_dir: str | None = None) -> Iterator[None]:
    """End the program with one line for an error that a user can mend; every other one keeps its traceback.

    The line is in the log of the run, too. Where the reader of what is printed has gone, as in ``| head``, the program
    ends in silence.

    Args:
        run_dir: the folder of the run, whose last checkpoint goes on; None outside a run.

    Raises:
        SystemExit: with the line.
    """
    try:
        try:
            yield
        finally:
            sys.stdout.flush()  # now, and not when the interpreter ends
    except BrokenPipeError:
        if not _reader_gone():
            raise
        _print_to_nobody()
        raise SystemExit(CLOSED_PIPE) from None
    except Exception as error:
        if (line := line_of(error, run_dir)) is None:
            _note("the run failed", error)
            raise
        _note(f"error: {line}")
        raise SystemExit(f"{speaker()}error: {line}") from None


def line_of(error: Exception, run_dir: str | None = None) -> str | None:
    """Return what to tell a user of ``error``, in one line; None for one that is nobody's to mend but ours.

    A user can mend a UserError; what Hydra refuses; a full disk, a file that may not be read or written, or one that is
    named on the command line; and a run of several processes of which one is gone.
    """
    from zoo.training.hydra_errors import is_refused_by_hydra, line_of_hydra  # slow to import, and rarely used
    from zoo.training.shell import override, pasted

    last = pasted(override("ckpt", Path(run_dir, "checkpoints", "last.ckpt"))) if run_dir else ""
    if isinstance(error, OSError) and error.errno in FULL_DISK:
        then = f": {last} then goes on" if run_dir else ""
        return f"{error.filename or run_dir or 'a file'} cannot be written: {error.strerror}. Make room{then}"
    if isinstance(error, UserError):
        return str(error)
    if is_refused_by_hydra(error):
        return None if SHOW_ALL else line_of_hydra(error)
    if isinstance(error, OSError) and error.filename and (error.errno in NOT_ALLOWED or _named(error.filename)):
        return f"{error.filename} cannot be read or written: {error.strerror}. Name another file or folder"
    if isinstance(error, RuntimeError) and run_dir and re.search("closed by peer|reset by peer", str(error)):  # gloo
        return f"another process of this run is gone; {last} goes on"
    return None


def _named(file: str | bytes | int) -> bool:
    """Whether the command line names ``file``, or the folder that it lies in."""
    path = Path(os.fsdecode(file)) if isinstance(file, str | bytes) else Path()
    words = [word for argument in sys.argv[1:] for word in (argument, argument.partition("=")[2].strip("'\""))]
    return any(word and Path(word) in (path, *path.parents) for word in words) and path != Path()


def _note(line: str, error: Exception | None = None) -> None:
    """Write to the log of the run alone; the terminal has it from Python."""
    if "logging" not in sys.modules:
        return
    import logging

    about = (type(error), error, error.__traceback__) if error else None
    record = logging.LogRecord(__name__, logging.ERROR, __file__, 0, line, None, about)
    shown, logging.raiseExceptions = logging.raiseExceptions, False  # that a full disk takes no log, either
    try:
        for handler in logging.getLogger().handlers:
            if isinstance(handler, logging.FileHandler):
                with suppress(OSError):  # of opening the file
                    handler.handle(record)
    finally:
        logging.raiseExceptions = shown


def _reader_gone() -> bool:
    """Whether standard output or standard error is a pipe that nobody reads any more."""
    import select

    poll = select.poll()
    for number in (1, 2):
        poll.register(number, 0)
    return any(event & select.POLLERR for _, event in poll.poll(0))


def _print_to_nobody() -> None:
    nobody = os.open(os.devnull, os.O_WRONLY)
    for number in (1, 2):
        os.dup2(nobody, number)
