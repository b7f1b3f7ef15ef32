"""Write log messages and warnings on separate lines, above progress bars and in the log file of the run."""

import logging
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from tqdm.contrib.logging import logging_redirect_tqdm
from tqdm.std import tqdm

from zoo.functional.progress import held_by_rich

log = logging.getLogger(__name__)


class AboveBars(tqdm):
    """Bars of tqdm whose ``write`` also writes above the bars of rich."""

    @classmethod
    def write(cls, s, file=None, end="\n", nolock=False):
        if held_by_rich(sys.stderr) and file is not None and file.isatty():
            from rich import get_console

            get_console().print(s, end=end, soft_wrap=True, markup=False, highlight=False)  # commands stay on one line
        else:
            super().write(s, file=file, end=end, nolock=nolock)


@contextmanager
def log_above_bars() -> Iterator[None]:
    """Write log messages above the progress bars of tqdm and rich, and send warnings to the log."""

    def show(message, category, filename, lineno, file=None, line=None):
        log.warning("%s: %s (%s:%d)", category.__name__, str(message).strip(), filename, lineno)

    before = warnings.showwarning
    warnings.showwarning = show
    try:
        with logging_redirect_tqdm(tqdm_class=AboveBars):
            yield
    finally:
        warnings.showwarning = before


class LogFile(logging.FileHandler):
    """The log file of a run. If the disk is full, lines are lost, but the run continues."""

    def handleError(self, record: logging.LogRecord) -> None:
        if not isinstance(sys.exc_info()[1], OSError):
            super().handleError(record)
