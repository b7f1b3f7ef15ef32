"""Profilers of a run. Their tables are files in the run folder."""

import logging
from pathlib import Path

from lightning.pytorch.profilers import AdvancedProfiler, Profiler, PyTorchProfiler, SimpleProfiler

from zoo.checks.values import check_choice
from zoo.training.shell import pasted

log = logging.getLogger(__name__)

PROFILERS: dict[str, type[Profiler]] = {"advanced": AdvancedProfiler, "pytorch": PyTorchProfiler}
ROWS = 15  # calls that are printed


def make_profiler(kind: str, folder: str) -> Profiler:
    """Return a profiler that writes its table to ``<stage>-profile.txt`` in ``folder``, for the stages fit and test.

    Args:
        kind: ``simple`` measures the calls of Lightning, ``advanced`` the functions of Python, and ``pytorch`` the
            operators of torch.
        folder: the run folder.

    Raises:
        UserError: if ``kind`` is another word.
    """
    check_choice("trainer.profiler.kind", kind, ("simple", *PROFILERS))
    log.info("The profile of this run will be in %s", pasted(Path(folder, "fit-profile.txt")))
    return PROFILERS.get(kind, Profile)(dirpath=folder, filename="profile")


class Profile(SimpleProfiler):
    """Lightning's SimpleProfiler, which also prints the calls of ``fit`` that took longest in total."""

    def describe(self) -> None:
        super().describe()
        if self._stage == "fit" and self._local_rank in (None, 0):
            log.info("%s", slowest(self.recorded_durations))


def slowest(durations: dict[str, list[float]]) -> str:
    """Return a table of the calls that took longest, from the seconds of each call by name."""
    totals = sorted(((sum(each), len(each), name) for name, each in durations.items() if each), reverse=True)[:ROWS]
    rows = [f"{total:9.3f} {calls:8,} {1000 * total / calls:10.3f}  {short(name)}" for total, calls, name in totals]
    return "\n".join([f"{'seconds':>9} {'calls':>8} {'ms a call':>10}  call", *rows])


def short(name: str) -> str:
    """Return the name of a call without the settings of its callback, which Lightning writes in braces."""
    before, brace, after = name.partition("{")
    return before + after.rpartition("}")[2] if brace else name
