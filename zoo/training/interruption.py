"""End the program on Ctrl-C or SIGTERM, with a message of one line and exit status 128 + signal number."""

import _thread  # threading would be slow to import for ``zoo list``
import atexit
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from typing import TYPE_CHECKING

from zoo.training.processes import number, started_by_lightning

if TYPE_CHECKING:
    from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)
PATIENCE = 5  # seconds until the program ends even if the main thread does not react to the signal


class Interrupted(SystemExit):
    """Exit of the program after a signal. It derives from SystemExit, because libraries catch Exception."""

    def __init__(self, signum: int):
        # Lightning kills the first process if a process that it started fails. These processes therefore exit with 0.
        super().__init__(0 if started_by_lightning() else 128 + signum)
        self.signum = signum

    def say(self) -> None:
        if number() == 0:
            with suppress(OSError):
                print(f"interrupted by {signal.Signals(self.signum).name}", file=sys.stderr, flush=True)


class _Received:
    """State that the signal handler, the watching thread and the program share."""

    signum: int | None = None  # the latest signal that was received
    finished = False  # whether the block of ended_by_signals has ended


@contextmanager
def ended_by_signals() -> Iterator[None]:
    """End the program with one line at the first SIGINT or SIGTERM. A second signal ends it at once.

    The signal handler raises, so the stack unwinds and unfinished files are removed. If a library suppresses the
    exception, the handler raises again. If the main thread does not react, for example because it waits for another
    process, the program ends after ``PATIENCE`` seconds. After a signal, the program skips the clean-up of modules,
    because a module that was interrupted during its import can crash there. The import of torch.distributed is not
    interrupted: the handler raises after it.
    """
    atexit.register(_leave)  # functions that are registered later run earlier
    woken, waker = os.pipe()
    os.set_blocking(waker, False)
    try:  # a signal can come as soon as the first handler is there
        for signum in SIGNALS:
            if signal.getsignal(signum) is not signal.SIG_IGN:  # shell scripts make background jobs ignore SIGINT
                signal.signal(signum, _interrupt)
        signal.set_wakeup_fd(waker, warn_on_full_buffer=False)
        _thread.start_new_thread(_watch, (woken, _thread.get_ident()))
        if started_by_lightning():
            signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)  # see signals_held
        yield
    except BaseException:  # a library may have turned Interrupted into another exception
        if not interrupted():
            raise
    finally:
        _Received.finished = True
        for signum in SIGNALS:  # after the block, signals have their default effect
            if signal.getsignal(signum) is _interrupt and not interrupted():
                signal.signal(signum, signal.SIG_DFL)
    if _Received.signum is not None:
        if "logging" in sys.modules:  # libraries that were interrupted during import may still log errors
            sys.modules["logging"].disable()
        end = Interrupted(_Received.signum)
        end.say()
        raise end


@contextmanager
def signals_held() -> Iterator[None]:
    """Block signals as ``signals_blocked`` does, if this program has the handlers of ``ended_by_signals``.

    A new process receives them only when ``ended_by_signals`` has installed its handlers. Without the block, Ctrl-C in
    the first moments of a second process would end it with Python's traceback. Lightning would then kill the first
    process.
    """
    with signals_blocked() if signal.getsignal(signal.SIGTERM) is _interrupt else nullcontext():
        yield


@contextmanager
def signals_blocked() -> Iterator[None]:
    """Block SIGINT and SIGTERM. A process that is started in this block begins with both blocked."""
    if sys.platform == "win32":
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _leave() -> None:
    """End the program here if a signal is ending it. All other exit functions have run."""
    if _Received.signum is not None:
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError, AttributeError):  # closed or absent
                stream.flush()
        os._exit(int(str(Interrupted(_Received.signum).code)))


def interrupted() -> bool:
    """Return whether a signal is ending this program."""
    return _Received.signum is not None


def _interrupt(signum: int, frame: "FrameType | None") -> None:
    _Received.signum = signum
    if not _Received.finished and not _unwinds(sys.exc_info()[1]) and not _registers_types(frame):
        raise Interrupted(signum)


def _unwinds(error: BaseException | None) -> bool:
    """Return whether the stack is already unwinding because of a signal."""
    while error is not None and not isinstance(error, Interrupted):
        error = error.__context__
    return error is not None


def _registers_types(frame: "FrameType | None") -> bool:
    """Return whether ``frame`` is called by the import of torch.distributed.

    This import registers C++ types. If it is interrupted and a clean-up imports it again, torch registers them twice
    and aborts the process. ``_watch`` sends the signal again after the import.
    """
    while frame is not None:
        if frame.f_code.co_name == "<module>" and frame.f_globals.get("__name__") == "torch.distributed":
            return True
        frame = frame.f_back
    return False


def _watch(woken: int, main_thread: int) -> None:
    """Wait for the first signal, then make sure that the program ends. This runs in a thread."""
    while True:
        signum = os.read(woken, 1)[0]
        if signum in SIGNALS and signal.getsignal(signum) is _interrupt:
            break
    import select  # imported late, because most programs receive no signal

    seconds = 0
    while interrupted() or seconds < PATIENCE:
        seconds += 1
        # A second signal ends the program. It is ignored within the first second, because some programs send a signal
        # to the process and again to its process group.
        if select.select([woken], [], [], 1)[0] and os.read(woken, 1)[0] in SIGNALS and seconds > 1:
            break
        if not _Received.finished:
            signal.pthread_kill(main_thread, signum)
            if select.select([woken], [], [], 0.5)[0]:
                os.read(woken, 1)  # discard the signal that pthread_kill has sent
    end = Interrupted(signum)
    end.say()
    os._exit(int(str(end.code)))
