"""Data module of text for skip-gram: rows of words with their neighbours.

An epoch reads the training text once. Frequent words are dropped at random (Mikolov et al. 2013b, sec. 2.3). The words
before and after a dropped word become neighbours. Each remaining word is the centre of a window of random size
(Mikolov et al. 2013a). The text is cut into rows of 32 centres. A row also contains the ``window`` words before and
after its centres, so that no pair is lost at a cut. Each epoch draws new rows, and shuffles them.

    words of a row     m m m m m | c c c ... c c c | m m m m m       c centres, m margin (window = 5)

Rows are arrays of integers. The same seed and epoch give the same rows. Each process takes a part of every batch. Two
processes together see the same rows as one process. Loaders store their position in the epoch, so training can resume
within an epoch.

Difference from Mikolov et al. 2013b: this module keeps a word with probability min(1, sqrt(f) + f), where
f = sample / frequency. The authors' program and gensim use the same probability. In the paper, it is sqrt(f).
"""

import hashlib
import logging
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Literal

import lightning as L
import torch
from torch import Tensor

from zoo.checks.errors import UserError
from zoo.checks.old_forms import old_form
from zoo.checks.values import check_choice, check_fraction, check_integer
from zoo.datamodules.corpus import PUBLISHED, RULES, Corpus, fetch, load_corpus
from zoo.datamodules.files import DataError, resumes
from zoo.datamodules.limits import SPLITS, check_limits, overfits
from zoo.functional.contrastive import ROW, Rows
from zoo.functional.noise import chunk_generator

log = logging.getLogger(__name__)

SHORT = 1_000_000  # training texts with fewer words have smaller batches by default
TEXTS = ("text8", "wikitext2", "textfile", "pydocs", "text8_or_pydocs")


def keep_probability(counts: Tensor, sample: float) -> Tensor:
    """Return the probability to keep each word, min(1, sqrt(f) + f), (V,) float32.

    f is ``sample`` divided by the relative frequency of the word. If ``sample`` is 0, all words are kept.
    """
    if sample == 0:
        return torch.ones(len(counts))
    f = sample * counts.sum().double() / counts.double()
    return (f.sqrt() + f).clamp(max=1).float()


@old_form
def make_rows(stream: Tensor, keep: Tensor, window: int, *, generator: torch.Generator) -> Rows:
    """Subsample a text and return all of its rows, in the order of the text.

    Args:
        stream: numbers of words, and -1 at the end of a paragraph, (n,).
        keep: probability to keep each word, (V,).
        window: largest number of words that a window has on either side, at least 1.
        generator: a CPU generator.

    Returns:
        Rows, (R, ...), where R is at least 1. ``window`` entries of -1 separate paragraphs. R is the number of
        remaining words and these entries, divided by 32 and rounded up.
    """
    always = torch.cat([keep, torch.ones(1)])  # index -1, the end of a paragraph, is kept with probability 1
    stream = stream[torch.rand(len(stream), generator=generator) < always[stream.long()]]
    if (stream < 0).any():
        stream = stream.repeat_interleave(torch.where(stream < 0, window, 1))
    R = max(1, -(-len(stream) // ROW))
    padded = torch.full((window + R * ROW + window,), -1, dtype=stream.dtype)
    padded[window : window + len(stream)] = stream
    reach = torch.randint(1, window + 1, (R * ROW,), generator=generator, dtype=torch.int16)
    reach[padded[window:-window] < 0] = 0
    return Rows(padded.unfold(0, window + ROW + window, ROW), reach.view(R, ROW))


class TextLoader:
    """Loader of batches of :class:`Rows`.

    Args:
        stream: numbers of words, and -1 at the end of a paragraph, (n,).
        keep: probability to keep each word, (V,).
        window: largest number of words that a window has on either side.
        batch_size: rows per step, over all processes.
        train: True draws new rows for each epoch, shuffles them, and drops the last incomplete batch. False gives all
            rows in the order of the text, and the same rows in every epoch.
        seed: seed of the rows and their order.
        device: device of the batches.
        rank, world_size: rank and number of processes. Rank r takes rows r, r + world_size, ... of each batch.
        fixed: whether every epoch has the batches of the first epoch.
    """

    def __init__(
        self,
        stream: Tensor,
        keep: Tensor,
        window: int,
        batch_size: int,
        train: bool,
        seed: int = 0,
        device: torch.device | str = "cpu",
        rank: int = 0,
        world_size: int = 1,
        fixed: bool = False,
    ):
        self.stream, self.keep, self.window, self.batch_size, self.train = stream, keep, window, batch_size, train
        self.seed, self.device, self.rank, self.world_size, self.fixed = seed, device, rank, world_size, fixed
        self.epoch = 0
        self.position = 0  # batches drawn in this epoch
        self._resume_at = 0
        self.batch_sampler = SimpleNamespace(sampler=self)  # Lightning looks for set_epoch here
        self._length = self._count()

    def _count(self) -> int:
        """Return the number of batches per epoch.

        The number of rows in a training epoch is random. The result is computed from the mean minus five standard
        deviations. Fewer than one epoch in a million has too few rows for this number of batches.
        """
        if not self.train:
            return -(-len(self.rows().reach) // self.batch_size)
        mean, sd = self.mean_rows()
        return max(0, int((mean - 5 * sd) // self.batch_size))

    def mean_rows(self) -> tuple[float, float]:
        """Return the mean and the standard deviation of the number of rows in a training epoch."""
        p = self.keep[self.stream[self.stream >= 0].long()].double()
        words = float(p.sum()) + self.window * int((self.stream < 0).sum())
        return words / ROW, float((p * (1 - p)).sum().sqrt()) / ROW

    def set_epoch(self, epoch: int) -> None:
        self.epoch = 0 if self.fixed else epoch

    def __len__(self) -> int:
        return self._length

    def rows(self, *, generator: torch.Generator | None = None) -> Rows:
        """Return all rows of the current epoch, in the order of the text.

        By default, the generator depends on the seed and the epoch.
        """
        return make_rows(self.stream, self.keep, self.window, generator=generator or self._generator())

    def _generator(self) -> torch.Generator:
        return chunk_generator(self.seed, self.epoch if self.train else 0)

    def __iter__(self) -> Iterator[Rows]:
        generator = self._generator()
        rows = self.rows(generator=generator)
        n = len(rows.reach)
        order = torch.randperm(n, generator=generator) if self.train else torch.arange(n)
        # All rows of an epoch are copied to the GPU once, so that a batch needs no copy.
        words, reach, order = (t.to(self.device) for t in (*rows, order))
        begin, self._resume_at = self._resume_at, 0
        for batch, own in enumerate(order.split(self.batch_size)[begin : len(self)], start=begin + 1):
            self.position, own = batch, own[self.rank :: self.world_size]
            yield Rows(words[own].long(), reach[own].long())

    def state_dict(self) -> dict[str, int]:
        return {"position": self.position}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.position = self._resume_at = state["position"]


class Text(L.LightningDataModule):
    """LightningDataModule of a text for skip-gram.

    Args:
        name: ``text8``, ``wikitext2``, ``pydocs`` (the documentation topics that come with Python), ``textfile`` or
            ``text8_or_pydocs``. ``text8_or_pydocs`` is text8 if text8 is on disk or can be downloaded. If not, it is
            pydocs, with a warning. ``self.used`` holds the text in use.
        path: path of a ``textfile``, or of a folder whose files are read in the order of their names. The encoding is
            UTF-8, or UTF-16 or UTF-32 with a byte order mark. The files are plain, or compressed by gzip, bzip2 or xz,
            or in a zip archive. Files whose names begin with a dot are ignored. ``~`` means the home folder.
        column: name of the column with the texts, if the files are tables (.csv, .tsv, or .parquet with pyarrow). None
            reads files as text throughout.
        rule: rule that splits the text into words. With ``words``, a word is a run of letters and digits, in lower
            case. With ``as_spaced``, a word is any text between white space, unchanged. By default, text8 and
            WikiText-2 use ``as_spaced``, because they are already split into words. Other texts use ``words``.
        min_count: smallest number of times that a word of the vocabulary occurs in the training text, at least 1.
        max_vocabulary: largest number of words in the vocabulary, at least 2, or None for no limit.
        window: largest number of words that a window has on either side, at least 1.
        sample: threshold of subsampling, a relative frequency, at least 0 and below 1. Words with more than 2.6 times
            this frequency are dropped at random. 0 drops no words.
        batch_size: rows of 32 words per training step, over all processes. Each process needs at least one row. None
            means 128 rows, or 32 rows for a training text of fewer than a million words. A short text needs the larger
            number of steps.
        eval_batch_size: rows per validation or test batch, over all processes.
        seed: seed of the training rows and their order. Validation and test rows are the same for every seed.
        train_on: ``train``, or ``everything`` to train also on the validation and test text. The validation and test
            text are then not held out.

    Raises:
        UserError: if an argument is not allowed.
        DataError: from ``prepare_data`` or ``setup``, if the text is missing, damaged, wrongly encoded or too short.
    """

    def __init__(
        self,
        name: str = "text8_or_pydocs",
        path: str | None = None,
        rule: str | None = None,
        min_count: int = 5,
        max_vocabulary: int | None = None,
        window: int = 5,
        sample: float = 1e-4,
        batch_size: int | None = None,
        eval_batch_size: int = 32,
        seed: int = 0,
        train_on: Literal["train", "everything"] = "train",
        column: str | None = None,
    ):
        super().__init__()
        check_choice("name", name, TEXTS)
        check_choice("train_on", train_on, ("train", "everything"))
        if rule is not None:
            check_choice("rule", rule, tuple(RULES))
        if (name == "textfile") != (path is not None):
            raise UserError(
                "data=textfile needs the path of the text file: set data.path=..."
                if path is None
                else f"data.path={path} cannot be used with data={name}: use data=textfile, or remove data.path"
            )
        for key, value in {"min_count": min_count, "window": window}.items():
            check_integer(key, value)
        if batch_size is not None:
            check_integer("batch_size", batch_size)
        check_integer("eval_batch_size", eval_batch_size)
        if max_vocabulary is not None:
            check_integer("max_vocabulary", max_vocabulary, least=2)
        check_fraction("sample", sample)
        check_integer("seed", seed, least=0)
        if path is not None and not isinstance(path, str):
            raise UserError(f"data.path is {path!r}, but must be the path of a file: put quotes around a numeric name")
        if column is not None and (path is None or not isinstance(column, str)):
            raise UserError(
                f"data.column={column!r} must be the name of a column, and needs data=textfile and data.path"
            )
        self.save_hyperparameters(logger=False)
        self.used: str | None = None if name == "text8_or_pydocs" else name
        self.corpus: Corpus | None = None

    def prepare_data(self) -> None:
        """Download and read the text, and choose the text of ``text8_or_pydocs``. One process per machine does this."""
        name = self.used or "text8"
        if name in PUBLISHED:
            try:
                fetch(name)
            except DataError as error:
                if self.used is not None:
                    raise
                name = "pydocs"
                log.warning(
                    "NO TEXT8, USING PYTHON'S DOCUMENTATION INSTEAD (65,000 words; not comparable with text8).\n"
                    "%s To require text8: data=text8",
                    error,
                )
        self.used = name
        self.corpus = self._load()  # other processes then read the encoded text from disk

    def _load(self) -> Corpus:
        options = self.hparams
        rule = options.rule or ("as_spaced" if self.used in PUBLISHED else "words")
        return load_corpus(
            self.used,
            None if options.path is None else Path(options.path).expanduser(),
            column=options.column,
            rule=rule,
            min_count=options.min_count,
            max_vocabulary=options.max_vocabulary,
            everything=options.train_on == "everything",
        )

    def setup(self, stage: str | None = None) -> None:
        if self.trainer is not None:
            self.used = self.trainer.strategy.broadcast(self.used)
        elif self.corpus is None:
            self.prepare_data()
        if self.corpus is None:
            self.corpus = self._load()
        if self.hparams.batch_size is None:
            self.hparams["batch_size"] = 32 if self.corpus.raw_words < SHORT else 128
        kept = float((torch.from_numpy(self.corpus.counts) * self.keep.double()).sum())
        if len(self.train_dataloader()) == 0 or kept < ROW:
            raise DataError(
                f"data.batch_size is {self.hparams.batch_size} rows of {ROW} words, but the training text has too few "
                f"rows: rare and frequent words of its {self.corpus.raw_words:,} words are dropped. Lower "
                "data.batch_size, raise data.sample, or use a longer text"
            )
        if self.trainer is not None:
            check_limits(self.trainer, {split: self._loader(split) for split in SPLITS}, self.hparams.batch_size)

    @property
    def keep(self) -> Tensor:
        """The probability to keep each word of the vocabulary, (V,)."""
        return keep_probability(torch.from_numpy(self.corpus.counts), self.hparams.sample)

    @property
    def unit(self) -> tuple[str, float]:
        """``words``, and the mean number of words of the training text in a row, dropped words included."""
        return "words", self.corpus.raw_words / self.train_dataloader().mean_rows()[0]

    def _loader(self, split: str) -> TextLoader:
        train, trainer = split == "train", self.trainer
        return TextLoader(
            torch.from_numpy(self.corpus.splits[split]),
            self.keep,
            self.hparams.window,
            self.hparams.batch_size if train else self.hparams.eval_batch_size,
            train=train,
            seed=self.hparams.seed if train else 0,
            device="cpu" if trainer is None else trainer.strategy.root_device,
            rank=0 if trainer is None else trainer.global_rank,
            world_size=1 if trainer is None else trainer.world_size,
            fixed=train and overfits(trainer),
        )

    def train_dataloader(self) -> TextLoader:
        return self._loader("train")

    def val_dataloader(self) -> TextLoader:
        return self._loader("val")

    def test_dataloader(self) -> TextLoader:
        return self._loader("test")

    def state_dict(self) -> dict[str, object]:
        settings = ("rule", "min_count", "max_vocabulary", "window", "sample", "batch_size", "seed", "train_on")
        words = hashlib.sha256("\n".join(self.corpus.words).encode()).hexdigest()
        return {"used": self.used, "vocabulary": words, **{key: self.hparams[key] for key in settings}}

    def load_state_dict(self, state: dict[str, object]) -> None:
        """Raise DataError if the data or their order differ from the checkpoint. Lightning calls it after ``setup``."""
        if not resumes(self):
            return
        for key, value in self.state_dict().items():
            if (before := state.get(key, value)) != value:
                if key == "vocabulary":
                    raise DataError(
                        "the vocabulary differs from the vocabulary of the checkpoint: resume with the same text, "
                        "data.rule, data.min_count, data.max_vocabulary and data.train_on"
                    )
                name = "data" if key == "used" else f"data.{key}"
                raise DataError(f"{name} is {value}, but was {before} when this run began: use the earlier value")
