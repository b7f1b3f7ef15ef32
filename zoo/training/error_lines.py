"""Print an error as one line if the user can fix it. All other errors keep their traceback."""

import errno
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from zoo.checks.errors import UserError
from zoo.training.interruption import interrupted
from zoo.training.processes import speaker

FULL_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
NOT_ALLOWED = (errno.EACCES, errno.EPERM, errno.EROFS)
SHOW_ALL = os.environ.get("HYDRA_FULL_ERROR") == "1"  # if true, Hydra's errors keep their traceback
CLOSED_PIPE = 128 + 13  # exit status of a program that SIGPIPE ends


@contextmanager
def one_line_errors(run_dir: str | None = None) -> Iterator[None]:
    """End the program with a message of one line if the user can fix the error. Other errors keep their traceback.

    The line is also written to the log of the run. If standard output is a pipe that its reader has closed,
    as in ``| head``, this program ends without a message.

    Args:
        run_dir: the folder of the run, which holds the checkpoint to resume from. None outside a run.

    Raises:
        SystemExit: with the line, if the user can fix the error.
    """
    try:
        try:
            yield
        finally:
            if sys.stdout is not None:  # None if the program starts with a closed standard output
                sys.stdout.flush()  # if the pipe is closed, this raises now, and not while the interpreter exits
    except BrokenPipeError:
        if not _reader_gone():
            raise
        _print_to_nobody()
        raise SystemExit(CLOSED_PIPE) from None
    except Exception as error:
        if interrupted():  # for example, an operation between processes that another process has left
            raise SystemExit from None
        if (line := line_of(error, run_dir)) is None:
            _note("the run failed", error)
            raise
        _note(f"error: {line}")
        raise SystemExit(f"{speaker()}error: {line}") from None


def line_of(error: Exception, run_dir: str | None = None) -> str | None:
    """Return the message of one line for an error that the user can fix. Return None for a bug of the program.

    The user can fix these errors:

    - a UserError, or an error of Hydra in the configuration
    - a full disk, a file without permission, or an error with a file that the command line names
    - the end of another process of the run
    """
    from zoo.training.hydra_errors import is_refused_by_hydra, line_of_hydra  # imported late, because it is slow
    from zoo.training.shell import resume_command

    resume = resume_command(Path(run_dir).absolute()) if run_dir else ""
    if isinstance(error, OSError) and error.errno in FULL_DISK:
        then = f", then resume with {resume}" if run_dir else ""
        return f"{error.filename or run_dir or 'a file'} cannot be written: {error.strerror}. Free disk space{then}"
    if isinstance(error, UserError):
        return str(error)
    if is_refused_by_hydra(error):
        return None if SHOW_ALL else line_of_hydra(error)
    if isinstance(error, OSError) and error.filename and (error.errno in NOT_ALLOWED or _named(error.filename)):
        return f"{error.filename} cannot be read or written: {error.strerror}. Choose another file or folder"
    if isinstance(error, RuntimeError) and run_dir and re.search("closed by peer|reset by peer", str(error)):  # gloo
        return f"another process of this run has ended; resume with {resume}"
    return None


def _named(file: str | bytes | int) -> bool:
    """Return whether the command line names ``file`` or a folder that contains it."""
    path = Path(os.fsdecode(file)) if isinstance(file, str | bytes) else Path()
    words = [word for argument in sys.argv[1:] for word in (argument, argument.partition("=")[2].strip("'\""))]
    return any(word and Path(os.path.expanduser(word)) in (path, *path.parents) for word in words) and path != Path()


def _note(line: str, error: Exception | None = None) -> None:
    """Write a line to the log file of the run only, because Python prints the error to the terminal."""
    if "logging" not in sys.modules:
        return
    import logging

    about = (type(error), error, error.__traceback__) if error else None
    record = logging.LogRecord(__name__, logging.ERROR, __file__, 0, line, None, about)
    shown, logging.raiseExceptions = logging.raiseExceptions, False  # a full disk must not cause another traceback
    try:
        for handler in logging.getLogger().handlers:
            if isinstance(handler, logging.FileHandler):
                with suppress(OSError):  # opening the log file can fail
                    handler.handle(record)
    finally:
        logging.raiseExceptions = shown


def _reader_gone() -> bool:
    """Return whether standard output or standard error is a pipe with a closed reading end."""
    import select

    poll = select.poll()
    for number in (1, 2):
        poll.register(number, 0)
    return any(event & select.POLLERR for _, event in poll.poll(0))


def _print_to_nobody() -> None:
    nobody = os.open(os.devnull, os.O_WRONLY)
    for number in (1, 2):
        os.dup2(nobody, number)
