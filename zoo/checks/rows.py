"""Rows of a text, as SkipGram takes them, and rows that are made of separate pairs of words.

:class:`zoo.functional.contrastive.Rows` explains the words and the reach of a row.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

ROW = 32  # centre words in a row of a batch
PAIRS_IN_A_ROW = 11  # pairs in a row of separate pairs, whose 34 positions are -1, centre, word, -1, centre, word, ...


def rows_of_pairs(centres: Tensor, words: Tensor) -> list[Tensor]:
    """Return words (R, 34) and reach (R, 32) of rows that hold only the pairs ``centres`` (B,), ``words`` (B,).

    A row has a window of 1 and holds ``PAIRS_IN_A_ROW`` pairs. An entry of -1 separates two pairs. The number of rows
    is B divided by ``PAIRS_IN_A_ROW`` and rounded up.
    """
    n = -(-len(centres) // PAIRS_IN_A_ROW) * PAIRS_IN_A_ROW
    table = centres.new_full((n, 3), -1)
    table[: len(centres), 0], table[: len(centres), 1] = centres, words
    places = F.pad(table.view(-1, 3 * PAIRS_IN_A_ROW), (1, 0), value=-1)  # (R, 34): each centre is before its word
    reach = (table[:, 0] >= 0).to(torch.int16)
    reach = F.pad(reach[:, None], (0, 2)).view(-1, 3 * PAIRS_IN_A_ROW)
    return [places, reach[:, :ROW]]


def as_rows(batch: Sequence[Tensor]) -> list[Tensor]:
    """Return words and reach of a batch, which holds words and reach of rows, or pairs as in :func:`rows_of_pairs`."""
    return rows_of_pairs(*batch) if batch[0].ndim == 1 else list(batch)
