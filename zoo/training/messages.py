"""Write log messages and warnings on separate lines, above progress bars and in the log file of the run."""

import logging
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from tqdm.contrib.logging import logging_redirect_tqdm

log = logging.getLogger(__name__)


@contextmanager
def log_above_bars() -> Iterator[None]:
    """Write log messages above the progress bars of tqdm, and send warnings to the log."""

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
    """The log file of a run. If the disk is full, lines are lost, but the run continues."""

    def handleError(self, record: logging.LogRecord) -> None:
        if not isinstance(sys.exc_info()[1], OSError):
            super().handleError(record)
