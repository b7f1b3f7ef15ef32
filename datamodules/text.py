"""Text for skip-gram: rows of words with their neighbours, drawn anew for each epoch.

An epoch goes over the training text once. Frequent words are left out at random, the rest closes up (Mikolov et al.
2013b, sec. 2.3), and every word that is left becomes the centre of a window of random reach (Mikolov et al. 2013a). The
stream is cut into rows of 32 centres; a row carries the ``window`` words before and after it too, so that no pair is
lost at a cut. Rows come in random order.

    words of a row     m m m m m | c c c ... c c c | m m m m m       c centres, m margin (window = 5)

All of it is arrays of whole numbers; the same (seed, epoch) gives the same rows, and every process takes its share of
each batch, so that two processes see the rows that one would, each a part of its own. Loaders know where they are in an
epoch, so training resumes in the middle of one.

Differs from the paper: a word is kept with probability sqrt(f) + f, f = sample / frequency, as in the authors' program
and in gensim; the paper has sqrt(f).
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
from zoo.checks.values import check_choice, check_share, check_whole
from zoo.datamodules.corpus import PUBLISHED, RULES, Corpus, fetch, load_corpus
from zoo.datamodules.files import DataError, resumes
from zoo.datamodules.limits import SPLITS, check_limits, overfits
from zoo.functional.contrastive import ROW, Rows
from zoo.functional.noise import chunk_generator

log = logging.getLogger(__name__)

TEXTS = ("text8", "wikitext2", "textfile", "pydocs", "text8_or_pydocs")


def keep_probability(counts: Tensor, sample: float) -> Tensor:
    """min(1, sqrt(f) + f) of words, f = sample / (count / sum of counts); (V,) float32. ``sample`` 0 keeps all."""
    if sample == 0:
        return torch.ones(len(counts))
    f = sample * counts.sum().double() / counts.double()
    return (f.sqrt() + f).clamp(max=1).float()


@old_form
def make_rows(stream: Tensor, keep: Tensor, window: int, *, generator: torch.Generator) -> Rows:
    """Subsample a text and cut it into rows, all of them, in the order of the text.

    Args:
        stream: numbers of words, -1 where a paragraph ends; (n,).
        keep: with what probability each word is kept, (V,).
        window: words that a window reaches to either side, at most; at least 1.
        generator: a CPU generator.

    Returns:
        Rows, (R, ...), R = ceil(what is left / 32), at least 1; ``window`` times -1 stands between paragraphs.
    """
    always = torch.cat([keep, torch.ones(1)])  # where -1 points: ends of paragraphs stay
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
    """Batches of :class:`Rows`, as a Lightning loader.

    Args:
        stream: numbers of words, -1 where a paragraph ends; (n,).
        keep: with what probability each word is kept, (V,).
        window: of the largest reach.
        batch_size: rows per step over all processes.
        train: rows drawn anew for each epoch, shuffled, the last incomplete batch left out; else always the same ones,
            in the order of the text, every one once.
        seed: of what is random.
        device: where batches go.
        rank, world_size: this process takes every ``world_size``-th row of each batch, from ``rank`` on.
        fixed: whether every epoch has the batches of the first.
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
        self.batch_sampler = SimpleNamespace(sampler=self)  # where Lightning looks for set_epoch
        self._length = self._count()

    def _count(self) -> int:
        """Batches per epoch: with ``train`` as many as every epoch has, except one in a million."""
        if not self.train:
            return -(-len(self.rows().reach) // self.batch_size)
        mean, sd = self.mean_rows()
        return max(0, int((mean - 5 * sd) // self.batch_size))

    def mean_rows(self) -> tuple[float, float]:
        """Rows of an epoch of training, on average, and their standard deviation."""
        p = self.keep[self.stream[self.stream >= 0].long()].double()
        words = float(p.sum()) + self.window * int((self.stream < 0).sum())
        return words / ROW, float((p * (1 - p)).sum().sqrt()) / ROW

    def set_epoch(self, epoch: int) -> None:
        self.epoch = 0 if self.fixed else epoch

    def __len__(self) -> int:
        return self._length

    def rows(self, *, generator: torch.Generator | None = None) -> Rows:
        """All rows of the current epoch, in the order of the text, by its own generator if none is given."""
        return make_rows(self.stream, self.keep, self.window, generator=generator or self._generator())

    def _generator(self) -> torch.Generator:
        return chunk_generator(self.seed, self.epoch if self.train else 0)

    def __iter__(self) -> Iterator[Rows]:
        generator = self._generator()
        rows = self.rows(generator=generator)
        n = len(rows.reach)
        order = torch.randperm(n, generator=generator) if self.train else torch.arange(n)
        begin, self._resume_at = self._resume_at, 0
        for batch, own in enumerate(order.split(self.batch_size)[begin : len(self)], start=begin + 1):
            self.position, own = batch, own[self.rank :: self.world_size]
            yield Rows(rows.words[own].long().to(self.device), rows.reach[own].long().to(self.device))

    def state_dict(self) -> dict[str, int]:
        return {"position": self.position}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.position = self._resume_at = state["position"]


class Text(L.LightningDataModule):
    """A text, as a LightningDataModule.

    Args:
        name: ``text8``, ``wikitext2``, ``pydocs`` (the documentation that Python itself carries), ``textfile``, or
            ``text8_or_pydocs``: text8 if it is on disk or can be downloaded, else pydocs, said in one line. What is
            used is ``self.used``.
        path: of a ``textfile``: UTF-8, or UTF-16 with a byte order mark, plain or packed by gzip, bzip2, xz or zip.
            ``~`` is the home folder.
        rule: what a word is: ``words``, runs of letters and digits, in lower case; or ``as_spaced``, whatever stands
            between white space, as it is. By default the latter for text8 and WikiText-2, which are made that way.
        min_count: how often a word is in the training text to be in the vocabulary, at least 1.
        max_vocabulary: the most words of the vocabulary, at least 2, or None.
        window: words that a window reaches to either side, at most; at least 1.
        sample: frequency above which words are left out at random, 0 to 1; 0 leaves none out.
        batch_size: rows of 32 words per training step, over all processes; at least one for each.
        eval_batch_size: the same for validation and test.
        seed: of what is random in training. Validation and test rows are the same under every seed.
        train_on: ``train``, or ``everything``, the validation and test text too, which then are not held out.

    Raises:
        UserError: for values outside these.
        DataError: from ``prepare_data`` or ``setup``, where text is missing, damaged, not UTF-8 or too short.
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
        batch_size: int = 32,
        eval_batch_size: int = 32,
        seed: int = 0,
        train_on: Literal["train", "everything"] = "train",
    ):
        super().__init__()
        check_choice("name", name, TEXTS)
        check_choice("train_on", train_on, ("train", "everything"))
        if rule is not None:
            check_choice("rule", rule, tuple(RULES))
        if (name == "textfile") != (path is not None):
            raise UserError(
                "data=textfile needs data.path=, the file to read"
                if path is None
                else f"data.path={path} is for data=textfile; {name} has its own place"
            )
        for key, value in {"min_count": min_count, "window": window, "batch_size": batch_size}.items():
            check_whole(key, value)
        check_whole("eval_batch_size", eval_batch_size)
        if max_vocabulary is not None:
            check_whole("max_vocabulary", max_vocabulary, least=2)
        check_share("sample", sample)
        check_whole("seed", seed, least=0)
        if path is not None and not isinstance(path, str):
            raise UserError(f"data.path must be the path of a file, got {path!r}: a name that is a number is quoted")
        self.save_hyperparameters(logger=False)
        self.used: str | None = None if name == "text8_or_pydocs" else name
        self.corpus: Corpus | None = None

    def prepare_data(self) -> None:
        """Download and read what is missing; one process per machine, which decides what ``text8_or_pydocs`` means."""
        name = self.used or "text8"
        if name in PUBLISHED:
            try:
                fetch(name)
            except DataError as error:
                if self.used is not None:
                    raise
                name = "pydocs"
                log.warning(
                    "NO TEXT8, USING PYTHON'S DOCUMENTATION INSTEAD (65,000 words; nothing measured on them compares "
                    "with text8): %s To insist on text8: data=text8",
                    error,
                )
        self.used = name
        self.corpus = self._load()  # and other processes find it made

    def _load(self) -> Corpus:
        options = self.hparams
        rule = options.rule or ("as_spaced" if self.used in PUBLISHED else "words")
        return load_corpus(
            self.used,
            None if options.path is None else Path(options.path).expanduser(),
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
        kept = float((torch.from_numpy(self.corpus.counts) * self.keep.double()).sum())
        if len(self.train_dataloader()) == 0 or kept < ROW:
            raise DataError(
                f"batch_size {self.hparams.batch_size} rows of {ROW} words are more than the training text has: of its "
                f"{self.corpus.raw_words:,} words some are rare or left out at random. Take a smaller batch, a larger "
                "sample, or more text"
            )
        if self.trainer is not None:
            check_limits(self.trainer, {split: self._loader(split) for split in SPLITS}, self.hparams.batch_size)

    @property
    def keep(self) -> Tensor:
        """With what probability each word of the vocabulary is kept, (V,)."""
        return keep_probability(torch.from_numpy(self.corpus.counts), self.hparams.sample)

    @property
    def unit(self) -> tuple[str, float]:
        """What is counted in this text, and how much of it a row of training stands for."""
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
        """Called when a run resumes, after ``setup``: refuse to go on with other data, or in another order."""
        if not resumes(self):
            return
        for key, value in self.state_dict().items():
            if (before := state.get(key, value)) != value:
                what = "its vocabulary was another one" if key == "vocabulary" else f"{key} was {before}, is {value}"
                raise DataError(f"a run resumes with the data and settings that it began with: {what}")
