"""Callback that writes tables of nearest neighbours of words during training, and draws a map of words at the end."""

import csv
import io
import logging
from pathlib import Path

from zoo.callbacks.cadence import AtEpochs, logged_step
from zoo.callbacks.grids import log_picture
from zoo.checks import capabilities
from zoo.checks.errors import UserError
from zoo.checks.values import check_integer
from zoo.evaluation.words import LONG, word_map
from zoo.sampling.pictures import save_figure
from zoo.training.files import atomic_write

log = logging.getLogger(__name__)


class Neighbours(AtEpochs):
    """Write ``neighbours/epoch_000.csv`` during validation and ``words.png`` at the end of training.

    Each row of the CSV file has a word and its nearest neighbours. :func:`zoo.evaluation.words.word_map` draws
    ``words.png``.

    Args:
        folder: the run folder.
        words: the words of the rows, such as ``[two, king]``. Words outside the vocabulary are skipped. By
            default, the words are the most frequent words of at least five letters.
        n: neighbours for each word.
        probes: number of rows if ``words`` is None.
        every_n_epochs: epochs between CSV files. The last epoch always has a file.
        shown: number of words in ``words.png``.

    Raises:
        UserError: if a number is below 1, or ``words`` is not a list of words. ``setup`` raises it if the model has
            no method ``nearest``.
    """

    def __init__(
        self,
        folder: str,
        words: list[str] | None = None,
        n: int = 8,
        probes: int = 16,
        every_n_epochs: int = 1,
        shown: int = 150,
    ):
        super().__init__(every_n_epochs)
        for key, value in {"n": n, "probes": probes, "shown": shown}.items():
            check_integer(key, value)
        if words is not None and (not isinstance(words, list) or not all(isinstance(w, str) for w in words)):
            raise UserError(f"words is {words!r}, but must be null or a list of words")
        self.folder, self.words, self.n, self.probes = Path(folder), words, n, probes
        self.shown = shown

    def setup(self, trainer, pl_module, stage):
        if not isinstance(pl_module, capabilities.Words):
            raise UserError(
                f"{type(pl_module).__name__} has no method nearest(word, n), which Neighbours needs: remove the "
                "callback"
            )

    def on_train_start(self, trainer, pl_module):
        if missing := [w for w in self.words or [] if w not in pl_module.index]:
            log.warning("the tables leave out %s: not in the vocabulary of the text", ", ".join(missing))

    def table(self, model) -> list[list[str]]:
        """Return the rows of the CSV file: a word, then each neighbour with its cosine similarity."""
        words = [w for w in model.words if len(w) >= LONG][: self.probes] if self.words is None else self.words
        near = {w: model.nearest(w, self.n) for w in words if w in model.index}
        return [[w, *(f"{other} {cosine:.2f}" for other, cosine in found)] for w, found in near.items()]

    def on_validation_batch_end(self, trainer, pl_module, outputs, batch, batch_idx, dataloader_idx=0):
        if batch_idx != 0 or not self.due(trainer) or not trainer.is_global_zero:
            return
        head, rows = ["word", *map(str, range(1, self.n + 1))], self.table(pl_module)
        text = io.StringIO(newline="")
        csv.writer(text).writerows([head, *rows])
        with atomic_write(self.folder / "neighbours" / f"epoch_{trainer.current_epoch:03d}.csv") as file:
            file.write(text.getvalue().encode())
        for logger in trainer.loggers:
            if isinstance(logger, capabilities.LogsTables):
                padded = [row + [""] * (len(head) - len(row)) for row in rows]
                logger.log_table("neighbours", columns=head, data=padded, step=logged_step(trainer))

    def on_train_end(self, trainer, pl_module):
        super().on_train_end(trainer, pl_module)
        if trainer.is_global_zero:
            save_figure(word_map(pl_module, self.shown), self.folder / "words.png")
            log_picture(trainer, "words", str(self.folder / "words.png"))
