"""The one place where errors are shown to people."""

import errno
import re
from collections.abc import Iterator
from contextlib import contextmanager

from zoo.checks.errors import UserError
from zoo.training.processes import speaker

FULL_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextmanager
def errors_for_people(run_dir: str | None = None) -> Iterator[None]:
    """End the program with one line for an error that a user can mend; every other one keeps its traceback.

    A user can mend a UserError, a full disk, and a run of several processes of which one is gone.

    Args:
        run_dir: the folder of the run, whose last checkpoint goes on; None outside a run.

    Raises:
        SystemExit: with the line.
    """
    last = f"{run_dir}/checkpoints/last.ckpt"
    try:
        yield
    except (UserError, OSError, RuntimeError) as error:
        if isinstance(error, OSError) and error.errno in FULL_DISK:
            what, then = error.filename or run_dir or "a file", f": ckpt={last} then goes on" if run_dir else ""
            message = f"{what} cannot be written: {error.strerror}. Make room{then}"
        elif isinstance(error, UserError):
            message = str(error)
        elif run_dir and re.search("closed by peer|reset by peer", str(error)):  # as gloo says it
            message = f"another process of this run is gone; ckpt={last} goes on"
        else:
            raise
        raise SystemExit(f"{speaker()}error: {message}") from None
