"""Messages and warnings of a run, each on a line of its own and in the log of the run."""

import logging
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from tqdm.contrib.logging import logging_redirect_tqdm

log = logging.getLogger(__name__)


@contextmanager
def lines_of_their_own() -> Iterator[None]:
    """Write what is logged above the bars of tqdm, not into them, and log warnings like everything else."""

    def show(message, category, filename, lineno, file=None, line=None):
        log.warning("%s: %s (%s:%d)", category.__name__, str(message).strip(), filename, lineno)

    before = warnings.showwarning
    warnings.showwarning = show
    try:
        with logging_redirect_tqdm():
            yield
    finally:
        warnings.showwarning = before


class LogFile(logging.FileHandler):
    """The log of a run. A full disk loses lines of it, and does not end the run."""

    def handleError(self, record: logging.LogRecord) -> None:
        if not isinstance(sys.exc_info()[1], OSError):
            super().handleError(record)
