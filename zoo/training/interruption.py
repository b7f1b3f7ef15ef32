"""Ctrl-C and SIGTERM end the program in one line, at any moment, with the status that shells expect."""

import _thread  # without the rest of threading, which would be a part of what ``python -m zoo list`` takes
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from zoo.training.processes import number, started_by_lightning

SIGNALS = (signal.SIGINT, signal.SIGTERM)
PATIENCE = 5  # seconds that the main thread has to answer, before a signal ends the program without it


class Interrupted(SystemExit):
    """A signal that ends the program; no Exception, so that nothing takes it for a failure of its own."""

    def __init__(self, signum: int):
        # Lightning kills the first process, with SIGKILL, where one that it has started fails.
        super().__init__(0 if started_by_lightning() else 128 + signum)
        self.signum = signum

    def say(self) -> None:
        if number() == 0:
            with suppress(OSError):
                print(f"interrupted by {signal.Signals(self.signum).name}", file=sys.stderr, flush=True)


class _Received:
    """What the handler, the thread beside it and the program know of a signal."""

    signum: int | None = None
    finished = False


@contextmanager
def ended_by_signals() -> Iterator[None]:
    """End the program inside by the first SIGINT or SIGTERM, in one line; a second one ends it at once.

    The stack unwinds, so files that are half written are removed. Where a library has swallowed what the handler
    raises, it raises again. A main thread that does not answer, such as one that waits for another process inside a
    library, is given ``PATIENCE`` seconds.
    """
    woken, waker = os.pipe()
    os.set_blocking(waker, False)
    for signum in SIGNALS:
        if signal.getsignal(signum) is not signal.SIG_IGN:  # as nohup and shells leave it for background jobs
            signal.signal(signum, _interrupt)
    signal.set_wakeup_fd(waker, warn_on_full_buffer=False)
    _thread.start_new_thread(_watch, (woken, _thread.get_ident()))
    try:
        yield
    except BaseException:  # whatever a library has made of it
        if not interrupted():
            raise
    finally:
        _Received.finished = True
        for signum in SIGNALS:  # what is left is leaving
            if signal.getsignal(signum) is _interrupt and not interrupted():
                signal.signal(signum, signal.SIG_DFL)
    if _Received.signum is not None:
        if "logging" in sys.modules:  # libraries that were interrupted while they were imported have a last word
            sys.modules["logging"].disable()
        end = Interrupted(_Received.signum)
        end.say()
        raise end


def interrupted() -> bool:
    """Whether a signal is ending this program."""
    return _Received.signum is not None


def _interrupt(signum, frame):
    _Received.signum = signum
    if not _Received.finished and not _unwinds(sys.exc_info()[1]):
        raise Interrupted(signum)


def _unwinds(error: BaseException | None) -> bool:
    """Whether the stack is unwinding because of a signal already."""
    while error is not None and not isinstance(error, Interrupted):
        error = error.__context__
    return error is not None


def _watch(woken: int, main_thread: int) -> None:
    """Wait for a first signal that ends the program, and see to it that it does."""
    while True:
        signum = os.read(woken, 1)[0]
        if signum in SIGNALS and signal.getsignal(signum) is _interrupt:
            break
    import select  # most programs never come here

    seconds = 0
    while interrupted() or seconds < PATIENCE:
        seconds += 1
        if select.select([woken], [], [], 1)[0] and os.read(woken, 1)[0] in SIGNALS and seconds > 1:
            break  # a second signal; two within a second are one, sent to the process and to its group
        if not _Received.finished:
            signal.pthread_kill(main_thread, signum)
            if select.select([woken], [], [], 0.5)[0]:
                os.read(woken, 1)  # its own
    end = Interrupted(signum)
    end.say()
    os._exit(int(str(end.code)))
