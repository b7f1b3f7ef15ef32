"""Tests of ``Text``: how it reads and encodes texts, and the statistics of its rows."""

import gzip
import logging
import lzma
import socket
import zipfile
from collections import Counter
from itertools import pairwise
from pathlib import Path

import lightning as L
import numpy as np
import pytest
import torch
from processes import done

from zoo.datamodules import DataError, Text, corpus, text_files
from zoo.datamodules.corpus import Corpus, find_words, load_corpus, number_words, restore, save
from zoo.datamodules.text import TextLoader, keep_probability, make_rows
from zoo.datamodules.text_files import read_text
from zoo.functional.contrastive import ROW, pairs_in_window

STORY = "The cat sat.\nThe cat's hat!\n \n\nA dog\u2019s den; the END\n"
WORDS = ["the", "cat", "sat", "the", "cat's", "hat", None, "a", "dog\u2019s", "den", "the", "end"]


@pytest.fixture(autouse=True)
def own_data_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("ZOO_DATA", str(tmp_path / "data"))


@pytest.fixture
def offline(monkeypatch):
    def refuse(*args, **kwargs):
        raise OSError("no network")

    monkeypatch.setattr(socket, "create_connection", refuse)


def pack(path: Path, text: bytes) -> Path:
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("inside.txt", text)
    else:
        path.write_bytes({".gz": gzip.compress, ".xz": lzma.compress}.get(path.suffix, bytes)(text))
    return path


def textfile(tmp_path, text: str | bytes, **options) -> Text:
    path = pack(tmp_path / "text.txt", text if isinstance(text, bytes) else text.encode())
    return Text("textfile", str(path), **options)


def spell(numbers, words) -> list[str | None]:
    return [None if i < 0 else words[i] for i in numbers.tolist()]


def random_text(generator, n=20_000, vocabulary=50, paragraph=0.01) -> str:
    """Return a text of random words with frequencies proportional to 1 / rank, and random paragraph ends."""
    p = 1 / torch.arange(1, vocabulary + 1)
    words = [f"w{i}" for i in torch.multinomial(p, n, replacement=True, generator=generator).tolist()]
    ends = (torch.rand(n, generator=generator) < paragraph).tolist()
    return " ".join(word + ("\n\n" if end else "") for word, end in zip(words, ends, strict=True))


# Reading.


@pytest.mark.parametrize("block", [1, 2, 3, 7, 1000])
@pytest.mark.parametrize("suffix", ["", ".gz", ".xz", ".zip"])
def test_words_and_paragraphs_whatever_the_packing_and_wherever_it_is_cut(suffix, block, tmp_path, monkeypatch):
    path = pack(tmp_path / f"story.txt{suffix}", b"\xef\xbb\xbf" + STORY.encode())
    monkeypatch.setattr(text_files, "BLOCK", block)
    index = {}
    numbers = number_words(read_text(path), "words", _growing(index))
    assert spell(numbers, list(index)) == WORDS
    as_spaced = {}
    number_words(read_text(path), "as_spaced", _growing(as_spaced))
    assert list(as_spaced) == ["The", "cat", "sat.", "cat's", "hat!", "A", "dog\u2019s", "den;", "the", "END"]


def _growing(index):
    class Growing(dict):
        def __getitem__(self, word):
            return index.setdefault(word, len(index))

    return Growing()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"abc d\xff e" * 9, r"a.txt is not UTF-8 text: byte 5 of the text is 0xff"),
        ("a.txt", b"", "the vocabulary has 0 words, because .* min_count=1 times in the training text of 0 words"),
        ("a.txt", b" \n\t \n\n ", "the training text of 0 words"),
        ("a.txt", b"one " * 500, "has 1 words, because .* min_count=1 times in the training text of 450 words"),
        ("a.txt", b"one two", "has fewer than two words of the vocabulary|the vocabulary has 1 words"),
        ("a.gz", b"not packed", "a.gz is damaged: Not a gzipped file"),
        ("a.gz", gzip.compress(bytes(range(256)), mtime=0)[:-9], "a.gz is damaged: Compressed file ended"),
        ("a.xz", b"not packed", "a.xz is damaged: Input format not supported"),
        ("a.zip", b"not packed", "a.zip is damaged: File is not a zip file"),
    ],
    ids=lambda value: "bytes" if isinstance(value, bytes) else None,  # compressed bytes depend on the machine
)
def test_bad_text_is_named(name, content, message, tmp_path):
    (tmp_path / name).write_bytes(content)
    data = Text("textfile", str(tmp_path / name), min_count=1)
    with pytest.raises(DataError, match=message):
        data.prepare_data()
    assert not list((tmp_path / "data").glob("**/*.npz"))


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(DataError, match="nowhere cannot be read: No such file"):
        Text("textfile", str(tmp_path / "nowhere")).prepare_data()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "text9"}, "name must be text8, .* or text8_or_pydocs, got 'text9'"),
        ({"name": "textfile"}, "data=textfile needs the path of the text file"),
        ({"path": "a"}, "data.path=a cannot be used with data="),
        ({"rule": "letters"}, "rule must be words or as_spaced, got 'letters'"),
        ({"min_count": 0}, "min_count must be an integer of at least 1, got 0"),
        ({"max_vocabulary": 1}, "max_vocabulary must be an integer of at least 2, got 1"),
        ({"window": 0}, "window must be an integer of at least 1"),
        ({"sample": 1}, "sample must be below 1, got 1"),
        ({"sample": -1e-3}, "sample must be a number of at least 0"),
        ({"batch_size": 0}, "batch_size must be an integer of at least 1"),
        ({"eval_batch_size": True}, "eval_batch_size must be an integer"),
        ({"train_on": "test"}, "train_on must be train or everything, got 'test'"),
    ],
)
def test_bad_options_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        Text(**arguments)


# Encoding.


def test_the_vocabulary_is_that_of_the_training_text(tmp_path):
    """The training text has 90 words. The last ten words are ``a`` and ``new``. ``new`` is not in the training text."""
    data = textfile(tmp_path, "b a a " * 29 + "c b a " + "new a new a new " * 2, min_count=2, sample=0, batch_size=1)
    data.setup()
    made = data.corpus
    assert made.words == ["a", "b"] and made.counts.tolist() == [59, 30] and made.raw_words == 90
    assert spell(made.splits["train"], made.words) == ["b", "a", "a"] * 29 + ["b", "a"]
    assert spell(made.splits["val"], made.words) == ["a", "a"] == spell(made.splits["test"], made.words)
    small = textfile(
        tmp_path,
        "b a a " * 29 + "c b a " + "new a new a new " * 2,
        max_vocabulary=2,
        min_count=1,
        batch_size=1,
        sample=0,
    )
    small.setup()
    assert small.corpus.words == ["a", "b"]  # c and new are rarer


def test_words_as_frequent_as_each_other_are_in_the_order_of_the_alphabet(tmp_path):
    data = textfile(tmp_path, "d b a c a d b e e e " * 20, min_count=1, sample=0, batch_size=1)
    data.setup()
    assert data.corpus.words == ["e", "a", "b", "d", "c"]


def test_everything_may_be_trained_on(tmp_path):
    text = random_text(torch.Generator().manual_seed(0), n=2000)
    held_out, everything = (
        textfile(tmp_path, text, train_on=part, min_count=1, batch_size=1) for part in ("train", "everything")
    )
    held_out.setup()
    everything.setup()
    assert (held_out.corpus.raw_words, everything.corpus.raw_words) == (1800, 2000)
    assert Counter(text.split()) == dict(zip(everything.corpus.words, everything.corpus.counts.tolist(), strict=True))


def test_paragraphs_end_once_however_empty(tmp_path):
    text = ("a b\n\n rare \n\n\n\n b a\n\n") * 50
    data = textfile(tmp_path, text, min_count=46, batch_size=1, sample=0)
    data.setup()
    train = spell(data.corpus.splits["train"], data.corpus.words)
    assert None in train and all(a is not None or b is not None for a, b in pairwise(train))


def test_kept_text_is_read_again_and_by_its_content_and_options(tmp_path, monkeypatch, caplog):
    path = tmp_path / "text.txt"
    options = {"rule": "words", "min_count": 1, "max_vocabulary": None}
    path.write_text("one two three " * 50, encoding="utf-8")
    first = load_corpus("textfile", path, **options)

    def refuse(*_):
        raise AssertionError("it is read")

    monkeypatch.setattr(corpus, "read_texts", refuse)
    again = load_corpus("textfile", path, **options)
    assert again.words == first.words and again.raw_words == first.raw_words
    assert all(np.array_equal(again.splits[k], first.splits[k]) for k in first.splits)
    for change in ({"min_count": 2}, {"rule": "as_spaced"}, {"max_vocabulary": 2}, {"everything": True}):
        with pytest.raises(AssertionError, match="it is read"):
            load_corpus("textfile", path, **options | change)
    path.write_text("one two four " * 50, encoding="utf-8")
    with pytest.raises(AssertionError, match="it is read"):
        load_corpus("textfile", path, **options)
    monkeypatch.undo()
    monkeypatch.setenv("ZOO_DATA", str(tmp_path / "data"))
    kept = list((tmp_path / "data" / "encoded").iterdir())
    assert len(kept) == 1 and kept[0].suffix == ".npz"
    path.write_text("one two three " * 50, encoding="utf-8")
    whole = kept[0].read_bytes()
    for damage in (whole[:-100], b"", b"something else"):
        kept[0].write_bytes(damage)
        assert load_corpus("textfile", path, **options).words == first.words
        assert "is damaged" in caplog.text
        caplog.clear()
        assert kept[0].read_bytes() == whole


def test_a_folder_that_cannot_be_written_costs_time_only(tmp_path, caplog):
    (tmp_path / "data").write_text("a file where the folder should be", encoding="utf-8")
    data = textfile(tmp_path, "one two " * 500, sample=0, batch_size=1)
    data.setup()
    assert data.corpus.words == ["one", "two"] and "each run will encode the text again" in caplog.text


# Published text.


def test_a_published_text_is_checked_before_it_is_used(tmp_path, monkeypatch, offline):
    folder = tmp_path / "data" / "text8"
    folder.mkdir(parents=True)
    text = b" anarchism originated as a term" * 40
    for name in ("text8.zip", "text8", "text8.gz"):
        pack(folder / name, text)
        monkeypatch.setitem(corpus.PUBLISHED, "text8", {"all": (corpus.PUBLISHED["text8"]["all"][0], "0" * 32)})
        with pytest.raises(DataError, match=f"{name} is damaged: it is not the published file. Delete or move it"):
            Text("text8_or_pydocs", min_count=1).prepare_data()  # pydocs does not replace a damaged file
        digest = corpus.hashlib.md5(text).hexdigest()
        monkeypatch.setitem(corpus.PUBLISHED, "text8", {"all": (corpus.PUBLISHED["text8"]["all"][0], digest)})
        data = Text("text8", min_count=1, sample=0, batch_size=1)
        data.prepare_data()
        data.setup()
        assert data.used == "text8" and set(data.corpus.words) == set(text.decode().split())
        for file in [*folder.iterdir(), *(tmp_path / "data" / "encoded").iterdir()]:
            file.unlink()


def test_wikitext_comes_split(tmp_path, monkeypatch):
    folder = tmp_path / "data" / "wikitext-2"
    folder.mkdir(parents=True)
    published = {}
    for split, (address, _) in corpus.PUBLISHED["wikitext2"].items():
        text = f" = A = \n \n The <unk> of {split} . \n".encode() * 40
        pack(folder / f"{address.rpartition('/')[2]}.gz", text)
        published[split] = (address, corpus.hashlib.md5(text).hexdigest())
    monkeypatch.setitem(corpus.PUBLISHED, "wikitext2", published)
    data = Text("wikitext2", min_count=2, batch_size=1, sample=0)
    data.prepare_data()
    data.setup()
    assert set(data.corpus.words) == {"=", "A", "The", "<unk>", "of", "train", "."}
    assert spell(data.corpus.splits["test"][:8], data.corpus.words) == ["=", "A", "=", None, "The", "<unk>", "of", "."]


def test_without_a_network_the_default_says_so_and_a_name_insists(caplog, offline):
    data = Text()
    with caplog.at_level(logging.WARNING):
        data.prepare_data()
    assert "NO TEXT8" in caplog.text and data.used == "pydocs"
    data.setup()
    assert {"the", "python", "class"} <= set(data.corpus.words)
    for name in ("text8", "wikitext2"):
        with pytest.raises(DataError, match=f"{name} is not in .* cannot be downloaded: .*data=pydocs"):
            Text(name).prepare_data()


# Rows.


def test_rows_hold_every_pair_of_the_text_once(generator):
    """Without subsampling, the rows contain the pairs that a double loop over the words of each paragraph finds."""
    stream = torch.randint(0, 9, (500,), generator=generator)
    stream[torch.rand(500, generator=generator) < 0.05] = -1
    window = 3
    rows = make_rows(stream, torch.ones(9), window, generator=torch.Generator().manual_seed(1))
    centres, around, taken = pairs_in_window(rows)
    ours = Counter(zip(centres[..., None].expand_as(around)[taken].tolist(), around[taken].tolist(), strict=True))

    # The loop uses the same window sizes, word by word.
    reach = iter(rows.reach[centres >= 0].tolist())
    paragraphs, expected = [[]], Counter()
    for word in stream.tolist():
        paragraphs.append([]) if word < 0 else paragraphs[-1].append(word)
    for words in paragraphs:
        for i, c in enumerate(words):
            r = next(reach)
            expected.update((c, w) for w in words[max(0, i - r) : i] + words[i + 1 : i + 1 + r])
    assert ours == expected and next(reach, None) is None


def test_reaches_are_uniform(generator):
    rows = make_rows(torch.zeros(60_000, dtype=torch.int32), torch.ones(1), 5, generator=generator)
    counts = torch.bincount(rows.reach.flatten().long(), minlength=6)
    assert counts[0] == rows.reach.numel() - 60_000
    assert (counts[1:] - 12_000).abs().max() < 4.5 * (60_000 * 0.2 * 0.8) ** 0.5  # fails once in 30,000 seeds


def test_words_are_left_out_as_often_as_said(generator):
    counts = torch.tensor([50_000, 5_000, 500, 50])
    keep = keep_probability(counts, 1e-2)
    f = 1e-2 * 55_550 / counts
    torch.testing.assert_close(keep, (f.sqrt() + f).clamp(max=1))
    assert keep[2:].tolist() == [1, 1] and torch.equal(keep_probability(counts, 0), torch.ones(4))
    stream = torch.arange(4).repeat_interleave(counts)[torch.randperm(int(counts.sum()), generator=generator)]
    centres = pairs_in_window(make_rows(stream, keep, 5, generator=generator))[0]
    left = torch.bincount(centres[centres >= 0], minlength=4)
    sd = (counts * keep * (1 - keep)).sqrt()
    assert ((left - counts * keep).abs() <= 4.5 * sd).all()  # fails once in 70,000 seeds
    assert 0.1 < keep[0] < 0.2


def test_epochs_differ_and_come_again_with_the_seed(tmp_path):
    data = textfile(tmp_path, random_text(torch.Generator().manual_seed(0)), sample=1e-2, batch_size=8, seed=3)
    data.setup()
    loader, same = data.train_dataloader(), data.train_dataloader()
    first, again = (torch.cat([b.words for b in epoch]) for epoch in (loader, same))
    assert torch.equal(first, again)
    loader.set_epoch(1)
    second = list(loader)
    assert len(second) == len(loader) and not torch.equal(torch.cat([b.words for b in second]), first)
    # Another loader resumes after two batches of the epoch.
    resumed = data.train_dataloader()
    resumed.set_epoch(1)
    resumed.load_state_dict({"position": 2})
    for ours, its in zip(resumed, second[2:], strict=True):
        assert torch.equal(ours.words, its.words) and torch.equal(ours.reach, its.reach)
    assert resumed.state_dict() == {"position": len(loader)}
    # Validation has all rows, and the same rows each time.
    val = data.val_dataloader()
    assert torch.equal(torch.cat([b.words for b in val]), val.rows().words)
    assert torch.equal(torch.cat([b.words for b in val]), torch.cat([b.words for b in data.val_dataloader()]))


def test_rows_of_validation_are_the_same_in_every_epoch(generator):
    """Validation also drops words and draws window sizes at random, with a fixed seed."""
    stream = torch.randint(5, (700,), generator=generator, dtype=torch.int32)
    loader = TextLoader(stream, torch.full((5,), 0.5), window=2, batch_size=4, train=False)
    first = list(loader)
    loader.set_epoch(3)
    for ours, theirs in zip(loader, first, strict=True):
        assert torch.equal(ours.words, theirs.words) and torch.equal(ours.reach, theirs.reach)


def test_each_epoch_draws_new_rows_and_shuffles_them():
    stream = torch.arange(3200, dtype=torch.int32)
    loader = TextLoader(stream, torch.full((3200,), 0.9), 2, 10, train=True)
    first = loader.rows()
    begin = [words[2] for words in next(iter(loader)).words.tolist()]
    assert begin != sorted(begin) and begin != list(range(begin[0], begin[0] + 10))
    loader.set_epoch(1)
    second = loader.rows()
    n = min(len(first.reach), len(second.reach))
    assert not torch.equal(first.words[:n], second.words[:n]) and not torch.equal(first.reach[:n], second.reach[:n])


def test_marks_belong_to_their_letters():
    """Vowel signs and combining accents stay with their letters. The lower-case form of İ keeps its dot."""
    assert find_words("İstanbul  e\u0301te\u0301 नमस्ते दुनिया It\u2019s x_y") == [
        "i\u0307stanbul", "\u00e9t\u00e9", "नमस्ते", "दुनिया", "it\u2019s", "x", "y"
    ]  # fmt: skip


def test_an_epoch_is_as_long_as_said_in_every_seed():
    """Subsampling drops words at random, so the number of the remaining words varies.

    Fewer than one epoch in a million has too few words for all batches.
    """
    stream = torch.randint(0, 20, (30_000,), generator=torch.Generator().manual_seed(0))
    stream[::50] = -1
    for seed in range(20):
        loader = TextLoader(stream, torch.full((20,), 0.4), 2, 4, train=True, seed=seed)
        batches = list(loader)
        assert len(batches) == len(loader) > 85 and all(b.words.shape == (4, 2 + ROW + 2) for b in batches)
        left = -(-len(loader.rows().reach) // 4)
        # len(loader) is five standard deviations below the mean, and ``left`` is at most five above the mean. Ten
        # standard deviations are 840 words, or 6.6 batches.
        assert left - len(loader) <= 6


def test_processes_share_each_batch_and_see_disjoint_text(tmp_path):
    """Word i of the text has the number i. The numbers in a batch show which part of the text it contains."""
    stream = torch.arange(2000)
    loader = lambda rank, size: TextLoader(stream, torch.ones(2000), 2, 8, train=True, rank=rank, world_size=size)  # noqa: E731
    one = [set(b.words[:, 2:-2].flatten().tolist()) for b in loader(0, 1)]
    two = [[set(b.words[:, 2:-2].flatten().tolist()) for b in loader(rank, 2)] for rank in range(2)]
    assert [a | b for a, b in zip(*two, strict=True)] == one
    seen = [set().union(*batches) for batches in two]
    assert seen[0] & seen[1] <= {-1} and min(map(len, seen)) > 850


def test_nothing_trains_on_held_out_text(tmp_path):
    """Every second word of the text occurs only once. Training sees none of these words from the last tenth."""
    words = [f"x{i} filler" for i in range(1000)]
    data = textfile(tmp_path, " ".join(words), min_count=1, sample=0, batch_size=1)
    data.setup()
    seen = torch.cat([b.words.flatten() for b in data.train_dataloader()]).unique()
    spelled = {data.corpus.words[i] for i in seen.tolist() if i >= 0}
    assert spelled <= {"filler", *(f"x{i}" for i in range(900))} and len(spelled) > 850
    for split in ("val", "test"):
        assert set(spell(data.corpus.splits[split], data.corpus.words)) == {"filler"}


def test_a_batch_larger_than_the_text_is_named(tmp_path):
    data = textfile(tmp_path, "one two " * 500, batch_size=1000)
    with pytest.raises(DataError, match="batch_size is 1000 rows of 32 words, but the training text has too few"):
        data.setup()


def test_a_resumed_run_refuses_other_text(tmp_path):
    data = textfile(tmp_path, "one two " * 2000, sample=0)
    data.setup()
    state = data.state_dict()
    data.load_state_dict(state)
    with pytest.raises(DataError, match="the vocabulary differs from the vocabulary of the checkpoint"):
        data.load_state_dict(state | {"vocabulary": "0"})
    with pytest.raises(DataError, match="data.window is 5, but was 9"):
        data.load_state_dict(state | {"window": 9})


@pytest.mark.parametrize(
    "key", ["rule", "min_count", "max_vocabulary", "window", "sample", "batch_size", "seed", "train_on"]
)
def test_a_run_resumes_with_every_setting_that_decides_its_rows(key, tmp_path):
    data = textfile(tmp_path, "one two " * 2000, sample=0)
    data.setup()
    with pytest.raises(DataError, match=f"data.{key} is {data.hparams[key]}, but was another"):
        data.load_state_dict(data.state_dict() | {key: "another"})


def test_lightning_runs_it_to_its_end(tmp_path, generator):
    """The model receives every batch of every epoch, and the epochs have different batches."""

    class Counting(L.LightningModule):
        def __init__(self):
            super().__init__()
            self.w, self.seen = torch.nn.Parameter(torch.zeros(())), []

        def training_step(self, batch, batch_idx):
            self.seen.append((self.current_epoch, batch.words[0].tolist()))
            return self.w * batch.reach.sum()

        def validation_step(self, batch, batch_idx):
            pass

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), 0.1)

    data, model = textfile(tmp_path, random_text(generator), sample=1e-2, batch_size=16), Counting()
    trainer = L.Trainer(
        max_epochs=2,
        limit_val_batches=0,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
    )
    trainer.fit(model, datamodule=data)
    steps = len(data.train_dataloader())
    assert [epoch for epoch, _ in model.seen] == [0] * steps + [1] * steps
    assert [words for epoch, words in model.seen if epoch == 0] != [words for epoch, words in model.seen if epoch == 1]


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="the peak of memory is read from /proc")
def test_reading_takes_little_memory(tmp_path):
    """Reading 8 MB with 2 million words takes at most 60 bytes of memory per word, besides Python and libraries."""
    path = tmp_path / "large.txt"
    line = " ".join(f"w{i % 97}" for i in range(20_000)) + " "
    with path.open("w", encoding="utf-8") as file:
        for _ in range(100):
            file.write(line)
    # VmHWM is the peak memory of the program alone. ru_maxrss would begin with the peak of the test process.
    if not Path("/proc/self/status").is_file():
        pytest.skip("the peak of a program's memory is read from /proc")
    code = (
        "from pathlib import Path; from zoo.datamodules.corpus import load_corpus\n"
        "status = lambda: Path('/proc/self/status').read_text(encoding='utf-8')\n"
        "peak = lambda: int(status().partition('VmHWM:')[2].split()[0]); before = peak()\n"
        f"c = load_corpus('textfile', Path({str(path)!r}), rule='as_spaced', min_count=5, max_vocabulary=None)\n"
        "print(c.raw_words, peak() - before)"
    )
    ended = done("-c", code)
    assert ended.returncode == 0, ended.stderr
    words, kilobytes = map(int, ended.stdout.split())
    assert words == 1_800_000 and kilobytes < 120_000


def test_a_saved_text_with_a_number_outside_the_vocabulary_is_encoded_again(tmp_path, caplog):
    part = np.array([0, 1, -1], np.int32)
    good = Corpus(["a", "b"], np.array([3, 2]), dict.fromkeys(("train", "val", "test"), part), 5)
    save(good, tmp_path / "good.npz")
    assert restore(tmp_path / "good.npz").words == good.words
    wrong = good._replace(splits=good.splits | {"val": np.array([0, 2], np.int32)})
    save(wrong, tmp_path / "wrong.npz")
    assert restore(tmp_path / "wrong.npz") is None and "word numbers outside the vocabulary" in caplog.text


@pytest.mark.parametrize(("short", "rows"), [(20_000, 32), (100, 128)])
def test_a_long_text_has_larger_batches(short, rows, tmp_path, monkeypatch):
    """The test changes the limit, so that a text of 10,000 words is short or long. A given batch size is kept."""
    monkeypatch.setattr("zoo.datamodules.text.SHORT", short)
    for wanted, expected in ((None, rows), (3, 3)):
        data = textfile(tmp_path, "one two " * 5000, sample=0, batch_size=wanted)
        data.setup()
        assert data.hparams.batch_size == expected
