"""Tests of downloads. Files are complete or absent, processes share one download, and errors are one line."""

import gzip
import hashlib
import logging
import multiprocessing
import os
import resource
import signal
import stat
import tempfile
import threading
import time
import warnings
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torchvision.datasets
import web_server

from zoo.__main__ import main
from zoo.datamodules import DataError, Images, Text, by_name, corpus, images
from zoo.datamodules.files import data_root, locked
from zoo.training.files import reachable

PATIENCE = web_server.PATIENCE


def idx(dims: list[int]) -> bytes:
    """Return an IDX file of zeros with the dimensions ``dims``."""
    n = 1
    for d in dims:
        n *= d
    return bytes([0, 0, 8, len(dims)]) + b"".join(d.to_bytes(4, "big") for d in dims) + bytes(n)


@pytest.fixture(scope="module")
def published():
    """Return files with the names and sizes of MNIST. All images are black."""
    sizes = {"train-images-idx3": [60_000, 28, 28], "train-labels-idx1": [60_000]}
    sizes |= {"t10k-images-idx3": [10_000, 28, 28], "t10k-labels-idx1": [10_000]}
    return {f"{name}-ubyte": idx(dims) for name, dims in sizes.items()}


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with web_server.running() as server:
        yield server


@pytest.fixture
def mnist(server, published, tmp_path, monkeypatch):
    """Return a server that is the second mirror of MNIST. The first mirror has no files. The data folder is empty."""
    packed = {f"{name}.gz": gzip.compress(content, mtime=0) for name, content in published.items()}
    server.files = {f"/{name}": content for name, content in packed.items()}
    md5 = {name: hashlib.md5(content).hexdigest() for name, content in (published | packed).items()}
    monkeypatch.setattr(torchvision.datasets.MNIST, "mirrors", [f"{server.address}/gone/", f"{server.address}/"])
    monkeypatch.setattr(torchvision.datasets.MNIST, "resources", [(name, md5[name]) for name in packed])
    monkeypatch.setitem(images.MD5, "mnist", {name: md5[name] for name in published})
    monkeypatch.setenv("ZOO_DATA", str(tmp_path / "data"))
    return server


def started(log: Path, function, *args):
    """Call ``function(*args)`` in a new process. ``log`` receives its messages and then its value or error."""

    def work():
        logging.basicConfig(filename=log, level=logging.WARNING, format="%(message)s", force=True)
        try:
            logging.warning("value %r", function(*args))
        except Exception as error:
            logging.warning("error %s: %s", type(error).__name__, error)

    with warnings.catch_warnings():  # Python warns that this process has threads; the child does not use them
        warnings.simplefilter("ignore", DeprecationWarning)
        process = multiprocessing.get_context("fork").Process(target=work)
        process.start()
    return process


def said(log: Path) -> list[str]:
    return log.read_text(encoding="utf-8").splitlines() if log.exists() else []


def run_alone(tmp_path, function, *args) -> str:
    process = started(tmp_path / "alone.log", function, *args)
    process.join(PATIENCE)
    return said(tmp_path / "alone.log")[-1]


def files_in(folder: Path) -> set[str]:
    """Return the names of the files in a folder, without locks."""
    return {p.name for p in folder.rglob("*") if p.is_file() and p.suffix != ".lock"}


def use(name: str) -> str:
    data = Images(name)
    data.prepare_data()
    return data.used


# One process downloads, and the others wait.


def test_of_two_processes_one_fetches_and_the_other_waits_says_so_once_and_finds_the_data(mnist, tmp_path):
    logs = [tmp_path / "a.log", tmp_path / "b.log"]
    mnist.go_when = lambda: any("waiting" in line for log in logs for line in said(log))
    both = [started(log, use, "mnist_or_digits") for log in logs]
    for process in both:
        process.join(PATIENCE)
    assert [said(log)[-1] for log in logs] == ["value 'mnist'"] * 2  # both use the same data set
    waiting = [line for log in logs for line in said(log) if "waiting" in line]
    assert len(waiting) == 1 and "that prepares mnist" in waiting[0]
    found = [path for path in mnist.asked if not path.startswith("/gone")]
    assert sorted(found) == sorted(mnist.files)  # each file is downloaded once
    assert files_in(data_root()) == {f"{name}.gz" for name in images.MD5["mnist"]}
    data = Images("mnist_or_digits")
    data.setup()
    assert {k: len(s.images) for k, s in data.splits.items()} == {"train": 55_000, "val": 5_000, "test": 10_000}


def test_a_process_that_is_killed_while_it_fetches_leaves_no_lock(mnist, tmp_path):
    killed = threading.Event()
    mnist.go_when = killed.is_set
    first = started(tmp_path / "a.log", use, "mnist")
    end = time.monotonic() + PATIENCE
    while not mnist.asked and time.monotonic() < end:
        time.sleep(0.02)
    os.kill(first.pid, signal.SIGKILL)
    first.join()
    killed.set()
    assert run_alone(tmp_path, use, "mnist") == "value 'mnist'"
    assert {f"{name}.gz" for name in images.MD5["mnist"]} <= files_in(data_root())


def test_a_text_is_read_by_one_of_two_processes(tmp_path, monkeypatch):
    monkeypatch.setenv("ZOO_DATA", str(tmp_path / "data"))
    (tmp_path / "text.txt").write_text("one two three " * 200, encoding="utf-8")
    logs, read = [tmp_path / "a.log", tmp_path / "b.log"], corpus.read_texts

    def slowly(*args):
        with (tmp_path / "read").open("a") as file:
            file.write("x")
        end = time.monotonic() + PATIENCE
        while not any("waiting" in line for log in logs for line in said(log)) and time.monotonic() < end:
            time.sleep(0.02)
        return read(*args)

    def words():
        data = Text("textfile", str(tmp_path / "text.txt"), sample=0, batch_size=1)
        data.setup()
        return data.corpus.raw_words

    monkeypatch.setattr(corpus, "read_texts", slowly)
    both = [started(log, words) for log in logs]
    for process in both:
        process.join(PATIENCE)
    assert [said(log)[-1] for log in logs] == ["value 540"] * 2
    assert (tmp_path / "read").read_text(encoding="utf-8") == "x"
    assert len(files_in(tmp_path / "data")) == 1


def test_a_lock_that_cannot_be_had_is_done_without(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("ZOO_DATA", str(tmp_path / "file"))
    with locked("mnist") as waited:
        assert waited is False


# Complete files or none.


def test_what_breaks_off_or_is_another_file_leaves_nothing(mnist, tmp_path):
    mnist.broken = True
    with pytest.raises(DataError, match=r"mnist is not in .*cannot be downloaded.*stopped [\d,]+ bytes before"):
        Images("mnist").prepare_data()
    assert files_in(data_root()) == set()
    mnist.broken = False
    name = "/t10k-labels-idx1-ubyte.gz"
    right = mnist.files[name]
    mnist.files[name] = b"<html>log in first</html>"
    with pytest.raises(DataError, match="the file at this address is not the published file"):
        Images("mnist").prepare_data()
    assert files_in(data_root()) == {f"{file}.gz" for file in images.MD5["mnist"]} - {name[1:]}
    mnist.files[name] = right
    mnist.asked.clear()
    assert use("mnist") == "mnist" and set(mnist.asked) == {name, f"/gone{name}"}  # asks for the missing file only


def test_a_full_disk_is_named_and_leaves_nothing(mnist, tmp_path):
    def on_a_full_disk():
        resource.setrlimit(resource.RLIMIT_FSIZE, (5_000, resource.RLIM_INFINITY))
        Images("mnist").prepare_data()

    answer = run_alone(tmp_path, on_a_full_disk)
    assert answer.startswith("error DataError: mnist cannot be written to") and "File too large" in answer
    assert "ZOO_DATA" in answer and not any(name.startswith(".") for name in files_in(data_root()))


def test_text_is_fetched_and_checked_too(server, tmp_path, monkeypatch):
    monkeypatch.setenv("ZOO_DATA", str(tmp_path / "data"))
    text = b" anarchism originated as a term" * 99
    with zipfile.ZipFile(tmp_path / "t.zip", "w") as archive:
        archive.writestr("text8", text)
    server.files["/text8.zip"] = b"<html>log in first</html>"
    published = {"all": (f"{server.address}/text8.zip", hashlib.md5(text).hexdigest())}
    monkeypatch.setitem(corpus.PUBLISHED, "text8", published)
    with pytest.raises(DataError, match=r"is not the published file.*Put text8.zip there.*data=pydocs"):
        Text("text8").prepare_data()
    assert files_in(data_root()) == set()
    server.files["/text8.zip"] = (tmp_path / "t.zip").read_bytes()
    data = Text("text8", min_count=1, sample=0, batch_size=1)
    data.setup()
    assert data.corpus.raw_words == int(99 * 5 * 0.9) and (data_root() / "text8" / "text8.zip").is_file()


# Data modules without a Trainer.


@pytest.mark.parametrize("make", [Images, by_name])
def test_set_up_by_hand_fetches_as_training_does(make, mnist):
    data = make("mnist")
    data.setup()
    assert len(data.splits["test"].images) == 10_000


def test_set_up_by_hand_without_a_network_says_what_training_says(mnist, monkeypatch):
    monkeypatch.setattr(torchvision.datasets.MNIST, "mirrors", [closed()])
    messages = []
    for begin in (Images.prepare_data, Images.setup):
        with pytest.raises(DataError, match="mnist is not in .* and cannot be downloaded") as error:
            begin(Images("mnist"))
        messages.append(str(error.value))
    assert messages[0] == messages[1] and all(f"{file}.gz" in messages[0] for file in images.MD5["mnist"])


COMMANDS = {
    "sample": ["sample", "rbm", "-n", "2", "-c", "steps=1", "--images"],
    "evaluate": ["evaluate", "classifier", "--data"],
    "compare": ["compare", "vae", "--draws", "2", "--batch-size", "2", "--estimators", "pathwise", "--data"],
}


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_fetches_what_it_lacks(command, mnist, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["zoo", *COMMANDS[command], "mnist"])
    monkeypatch.setattr(
        "zoo.evaluation.protocol.measure", lambda model, data, *_, **__: ({"n": len(use_all(data))}, {})
    )
    main()
    assert capsys.readouterr().out and files_in(data_root()) == {f"{file}.gz" for file in images.MD5["mnist"]}


def use_all(data) -> list:
    return list(data.test_dataloader())


LACKING = [(command, name) for command in COMMANDS for name in ("mnist", "fashion_mnist")]
COMMANDS_OF_WORDS = {
    "evaluate": ["evaluate", "skipgram", "--data"],
    "compare": ["compare", "skipgram", "--draws", "2", "--data"],
}
LACKING += [(command, name) for command in COMMANDS_OF_WORDS for name in ("text8", "wikitext2")]


@pytest.mark.parametrize(("command", "name"), LACKING)
def test_every_command_says_without_a_network_what_training_says(command, name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ZOO_DATA", str(tmp_path / "data"))
    monkeypatch.setattr("zoo.datamodules.files.reachable", lambda addresses: False)
    with pytest.raises(DataError) as in_training:
        by_name(name).prepare_data()
    arguments = (COMMANDS if "mnist" in name else COMMANDS_OF_WORDS)[command]
    monkeypatch.setattr("sys.argv", ["zoo", *arguments, name])
    with pytest.raises(SystemExit) as here:
        main()
    assert str(here.value) == f"error: {in_training.value}"


def closed() -> str:
    """Return an address at which no server listens."""
    http = ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler)
    http.server_close()
    return f"http://127.0.0.1:{http.server_port}/"


def test_a_host_is_asked_at_the_port_of_its_address_and_through_the_proxy(server, monkeypatch):
    assert reachable([f"{server.address}/x"])
    assert not reachable([closed()])
    monkeypatch.setenv("no_proxy", "")
    monkeypatch.setenv("https_proxy", server.address)
    assert reachable(["https://behind-a-proxy.invalid/x"])


# Data folders in unusual places or without permissions.


def test_a_tilde_in_the_name_of_the_data_folder_is_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("ZOO_DATA", "~/data")
    (tmp_path / "book.txt").write_text("one two " * 500, encoding="utf-8")
    data = Text("textfile", "~/book.txt", sample=0, batch_size=1)
    data.setup()
    assert data.corpus.words == ["one", "two"] and files_in(tmp_path / "data")
    assert by_name("~/book.txt").hparams.path == "~/book.txt"
    monkeypatch.setenv("ZOO_DATA", "~nobody-of-this-name/data")
    with pytest.raises(DataError, match="ZOO_DATA=~nobody-of-this-name/data cannot be found"):
        data_root()


def test_a_data_folder_that_is_a_file_is_named(mnist, tmp_path):
    (tmp_path / "data").touch()
    with pytest.raises(DataError, match=r"mnist cannot be written to .*data is not a folder.*ZOO_DATA"):
        Images("mnist").prepare_data()


@pytest.fixture
def open_to_all(monkeypatch):
    """Yield a data folder that every user of the machine can enter."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        monkeypatch.setenv("ZOO_DATA", folder)
        yield Path(folder)


def as_nobody(function):
    """Call ``function`` as an ordinary user if the tests run as root."""
    if os.geteuid() == 0:
        os.setegid(65534)
        os.seteuid(65534)
    return function()


def forbid_writing(folder: Path) -> None:
    for path in [*folder.rglob("*"), folder]:
        path.chmod(0o555 if path.is_dir() else 0o444)


def allow_writing(folder: Path) -> None:
    folder.chmod(stat.S_IRWXU)
    for path in folder.rglob("*"):
        path.chmod(stat.S_IRWXU)


def test_a_folder_that_cannot_be_written_works_where_its_data_are_complete(open_to_all, mnist, monkeypatch, tmp_path):
    monkeypatch.setenv("ZOO_DATA", str(open_to_all))
    use("mnist")
    (open_to_all / "book.txt").write_text("one two " * 500, encoding="utf-8")
    forbid_writing(open_to_all)

    def look():
        data, text = Images("mnist"), Text("textfile", str(open_to_all / "book.txt"), sample=0, batch_size=1)
        data.setup()
        text.setup()
        return len(data.splits["test"].images), text.corpus.words

    before = files_in(open_to_all)
    assert run_alone(tmp_path, as_nobody, look) == "value (10000, ['one', 'two'])"
    assert any("each run will encode the text again" in line for line in said(tmp_path / "alone.log"))
    assert files_in(open_to_all) == before
    allow_writing(open_to_all)


def test_a_folder_that_cannot_be_written_is_named_where_data_are_missing(open_to_all, mnist, monkeypatch, tmp_path):
    monkeypatch.setenv("ZOO_DATA", str(open_to_all))
    forbid_writing(open_to_all)
    answer = run_alone(tmp_path, as_nobody, lambda: use("mnist"))
    assert answer.startswith(f"error DataError: mnist cannot be written to {open_to_all}/MNIST/raw: ")
    assert "Permission denied" in answer
    allow_writing(open_to_all)


def test_a_folder_that_cannot_be_read_is_named(open_to_all, mnist, monkeypatch, tmp_path):
    (open_to_all / "MNIST").mkdir()
    (open_to_all / "MNIST").chmod(0)
    monkeypatch.setenv("ZOO_DATA", str(open_to_all))
    answer = run_alone(tmp_path, as_nobody, lambda: use("mnist"))
    (open_to_all / "MNIST").chmod(stat.S_IRWXU)
    assert answer.startswith(f"error DataError: {open_to_all}/MNIST cannot be read: Permission denied")
