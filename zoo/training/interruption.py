"""End the program on Ctrl-C or SIGTERM, with a message of one line. The exit status is 128 + signal number."""

import _thread  # threading would be slow to import for ``python -m zoo list``
import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType

from zoo.training.processes import number, started_by_lightning

SIGNALS = (signal.SIGINT, signal.SIGTERM)
PATIENCE = 5  # seconds until the program ends even if the main thread does not react to the signal
IMPORT_PATIENCE = 1  # seconds until the program ends if the main thread still imports a module
IMPORTER = "<frozen importlib._bootstrap>"  # file name of the frames of an import


class Interrupted(SystemExit):
    """Exit of the program after a signal. It derives from SystemExit, because libraries catch Exception."""

    def __init__(self, signum: int):
        # If a process that Lightning started fails, Lightning kills the first process. Started processes therefore exit
        # with 0.
        super().__init__(0 if started_by_lightning() else 128 + signum)
        self.signum = signum

    def say(self) -> None:
        if number() == 0:
            with suppress(OSError):
                print(f"interrupted by {signal.Signals(self.signum).name}", file=sys.stderr, flush=True)


class _Received:
    """State that the signal handler, the watching thread and the program share."""

    signum: int | None = None  # the signal that was received
    raised = False  # the handler has raised Interrupted
    finished = False  # the block of ended_by_signals has ended


@contextmanager
def ended_by_signals() -> Iterator[None]:
    """End the program with one line at the first SIGINT or SIGTERM. A second signal ends the program at once.

    The signal handler raises, so the stack unwinds and unfinished files are removed. If a library suppresses the
    exception, the handler raises again. If the main thread does not react, for example because it waits for another
    process, the program ends after ``PATIENCE`` seconds.

    The handler does not raise while a module is imported. NumPy and torch call Python from C while they are imported.
    An exception in such a call leaves them half initialised, and they later crash with a segmentation fault. The
    exception is raised after the import, or the program ends after ``IMPORT_PATIENCE`` seconds.
    """
    woken, waker = os.pipe()
    os.set_blocking(waker, False)
    for signum in SIGNALS:
        if signal.getsignal(signum) is not signal.SIG_IGN:  # shell scripts make background jobs ignore SIGINT
            signal.signal(signum, _interrupt)
    signal.set_wakeup_fd(waker, warn_on_full_buffer=False)
    _thread.start_new_thread(_watch, (woken, _thread.get_ident()))
    try:
        yield
    except BaseException:  # a library can turn Interrupted into another exception
        if not interrupted():
            raise
    finally:
        _Received.finished = True
        for signum in SIGNALS:  # after the block, signals have their default effect
            if signal.getsignal(signum) is _interrupt and not interrupted():
                signal.signal(signum, signal.SIG_DFL)
    if _Received.signum is not None:
        if "logging" in sys.modules:  # libraries that were interrupted during import can still log errors
            sys.modules["logging"].disable()
        end = Interrupted(_Received.signum)
        end.say()
        raise end


def interrupted() -> bool:
    """Return whether a signal is ending this program."""
    return _Received.signum is not None


def _interrupt(signum, frame):
    _Received.signum = signum
    if not _Received.finished and not _imports(frame) and not _unwinds(sys.exc_info()[1]):
        _Received.raised = True
        raise Interrupted(signum)


def _imports(frame: FrameType | None) -> bool:
    """Return whether ``frame`` or one of its callers imports a module."""
    while frame is not None and frame.f_code.co_filename != IMPORTER:
        frame = frame.f_back
    return frame is not None


def _unwinds(error: BaseException | None) -> bool:
    """Return whether the stack is already unwinding because of a signal."""
    while error is not None and not isinstance(error, Interrupted):
        error = error.__context__
    return error is not None


def _watch(woken: int, main_thread: int) -> None:
    """Wait for the first signal, then make sure that the program ends. This runs in a thread."""
    while True:
        signum = os.read(woken, 1)[0]
        if signum in SIGNALS and signal.getsignal(signum) is _interrupt:
            break
    import select  # imported late, because most programs receive no signal

    begun = time.monotonic()
    while True:
        importing = _imports(sys._current_frames().get(main_thread))
        patience = IMPORT_PATIENCE if importing else PATIENCE
        if not _Received.raised and not _Received.finished and time.monotonic() - begun > patience:
            break
        # A second signal ends the program. Within the first second, it is ignored, because some programs signal a
        # process and also its process group.
        again = select.select([woken], [], [], 1 if _Received.raised else 0.05)[0] and os.read(woken, 1)[0] in SIGNALS
        if again and time.monotonic() - begun > 1:
            break
        if not _Received.finished and not importing:
            signal.pthread_kill(main_thread, signum)
            if select.select([woken], [], [], 0.5)[0]:
                os.read(woken, 1)  # discard the signal that pthread_kill has sent
    end = Interrupted(signum)
    end.say()
    os._exit(int(str(end.code)))
