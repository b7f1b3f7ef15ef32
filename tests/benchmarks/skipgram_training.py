"""Benchmark of skip-gram training in Lightning, in a bare loop and in gensim's Word2Vec, with a profile of a step.

    pip install -e ".[bench]" && python tests/benchmarks/skipgram_training.py PATH [WORDS] [THREADS] [ROWS] \
        [--csv FOLDER]

PATH is a UTF-8 text. Each program trains for one epoch on the first WORDS words of the text (default 3,000,000). The
vectors have 100 dimensions. The window is 5, with 5 noise words, subsampling threshold 1e-4 and minimum count 5.
Batches of the zoo have ROWS rows of 32 words (default 128).

gensim has THREADS workers (default 2), and torch has THREADS threads. The programs take turns. The rate is in raw words
per second: all words of the training text, including those that subsampling drops. The time to make the vocabulary is
not included. The time to subsample and shuffle the epoch is included.
"""

import statistics
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path

import lightning as L
import numpy as np
import torch
from gensim.models import Word2Vec
from timing import take_csv, write_csv
from torch.profiler import ProfilerActivity, profile

from zoo.datamodules import Text
from zoo.datamodules.text_files import read_text
from zoo.evaluation.results import significant
from zoo.skipgram import SkipGram, sparse
from zoo.training.trainer import make_trainer

ROUNDS = 5
KINDS = {
    "matrix products": ("aten::bmm",),
    "look-ups": ("aten::index_select", "aten::index", "aten::gather", "aten::scatter_add_"),
    "updates of looked-up rows": ("aten::add", "aten::add_", "aten::mul_"),
    "copies": ("aten::copy_", "aten::cat"),
    "sigmoids and softplus": ("aten::softplus", "aten::softplus_backward", "aten::sigmoid"),
}


def first_words(path: Path, n: int) -> str:
    words: list[str] = []
    for piece in read_text(path):
        words += piece.split()
        if len(words) >= n:
            break
    return " ".join(words[:n])


class Sentences:
    """The training text in gensim's format, lists of 10,000 words."""

    def __init__(self, corpus):
        self.words, self.numbers = np.array(corpus.words, dtype=object), corpus.splits["train"]

    def __iter__(self):
        for begin in range(0, len(self.numbers), 10_000):
            part = self.numbers[begin : begin + 10_000]
            yield self.words[part[part >= 0]].tolist()


def of_gensim(corpus, threads: int) -> float:
    model = Word2Vec(vector_size=100, window=5, negative=5, sample=1e-4, sg=1, min_count=5, workers=threads, epochs=1)
    sentences = Sentences(corpus)
    model.build_vocab(sentences)
    start = time.perf_counter()
    model.train(sentences, total_examples=model.corpus_count, epochs=1)
    return time.perf_counter() - start


class Timer(L.Callback):
    """Callback that measures the seconds of an epoch, including its preparation."""

    def on_train_start(self, trainer, pl_module):
        self.start = time.perf_counter()

    def on_train_epoch_end(self, trainer, pl_module):
        self.seconds = time.perf_counter() - self.start


def in_lightning(data: Text) -> float:
    timer = Timer()
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = make_trainer(max_epochs=1, accelerator="cpu", callbacks=[timer], limit_val_batches=0, **quiet)
    trainer.fit(SkipGram(), datamodule=data)
    return timer.seconds


def bare(data: Text) -> tuple[float, SkipGram]:
    """Run the same training steps without Lightning. Return the seconds and the model."""
    model, keep = SkipGram(), data.keep
    counts = torch.from_numpy(data.corpus.counts)
    model.make_vocabulary(data.corpus.words, counts, keep)
    optimiser = torch.optim.SGD(model.parameters(), lr=model.hparams.lr)
    start, loader = time.perf_counter(), data.train_dataloader()
    for batch in loader:
        step(model, optimiser, batch)
    return time.perf_counter() - start, model


def step(model: SkipGram, optimiser, batch) -> None:
    terms = model.loss(batch, lookup=sparse)
    optimiser.zero_grad()
    (terms["loss"] * terms["pairs"]).backward()
    optimiser.step()


def shares(model: SkipGram, data: Text) -> dict[str, float]:
    """Return, for each kind of operation, its fraction of the time of a step in the bare loop."""
    optimiser = torch.optim.SGD(model.parameters(), lr=1e-9)
    batches = [batch for _, batch in zip(range(100), data.train_dataloader(), strict=False)]
    with profile(activities=[ProfilerActivity.CPU]) as watched:
        for batch in batches:
            step(model, optimiser, batch)
    spent: dict[str, float] = defaultdict(float)
    for event in watched.key_averages():
        kind = next((kind for kind, names in KINDS.items() if event.key in names), "everything else")
        spent[kind] += event.self_cpu_time_total
    return {kind: seconds / sum(spent.values()) for kind, seconds in spent.items()}


def main(path: str, words: int = 3_000_000, threads: int = 2, rows: int = 128, csv: Path | None = None) -> None:
    torch.set_num_threads(threads)
    with tempfile.TemporaryDirectory() as folder:
        text = Path(folder) / "text.txt"
        text.write_text(first_words(Path(path), words), encoding="utf-8")
        data = Text("textfile", str(text), batch_size=rows)
        data.setup()
    data.prepare_data = lambda: None  # the text is already encoded
    raw = data.corpus.raw_words
    print(f"{raw:,} training words, {len(data.corpus.words):,} in the vocabulary; {threads} threads, {rows} rows")
    seconds: dict[str, list[float]] = defaultdict(list)
    for round in range(ROUNDS):
        seconds["gensim"].append(of_gensim(data.corpus, threads))
        seconds["zoo, in Lightning"].append(in_lightning(data))
        took, model = bare(data)
        seconds["zoo, bare loop"].append(took)
        print(round + 1, {name: f"{raw / taken[-1]:,.0f}" for name, taken in seconds.items()}, flush=True)
    rates = [[name, significant(raw / statistics.median(taken))] for name, taken in seconds.items()]
    write_csv(csv, "speed-skipgram", ["program", "words/s"], rates)
    for name, taken in seconds.items():
        ratio = statistics.median(g / t for g, t in zip(seconds["gensim"], taken, strict=True))
        rate = raw / statistics.median(taken)
        print(f"{name:20} {rate:10,.0f} raw words per second, {ratio:.2f} x gensim, round by round")
    for kind, share in sorted(shares(model, data).items(), key=lambda item: -item[1]):
        print(f"{share:6.1%}  {kind}")


if __name__ == "__main__":
    given = sys.argv[1:]
    folder = take_csv(given)
    main(given[0], *map(int, given[1:]), csv=folder)
