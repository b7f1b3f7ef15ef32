"""Tests of weights at web addresses. They are kept after the first download, and a wrong file is never kept."""

import hashlib
import socket
from pathlib import Path

import pytest
import web_server
from helpers import assert_same

import zoo
from zoo.hub import CheckpointError, addresses

CONTENT = (zoo.WEIGHTS / "score-mixture.safetensors").read_bytes()
DIGEST = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """Return the folder of kept downloads, which does not exist yet."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    return tmp_path / "hub" / "zoo"


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with web_server.running() as server:
        server.files["/x.safetensors"] = CONTENT
        yield server


def source(server, digest=DIGEST):
    return f"{server.address}/x.safetensors#sha256={digest}"


def names(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()]


def test_a_second_load_needs_no_network(cache, server):
    first = zoo.load(source(server))
    assert_same(dict(first.state_dict()), dict(zoo.load("score-mixture").state_dict()))
    assert names(cache) == [f"{DIGEST}.safetensors"]
    server.files.clear()
    assert_same(dict(zoo.load(source(server)).state_dict()), dict(first.state_dict()))
    assert server.asked == ["/x.safetensors"]


def test_a_download_that_breaks_off_leaves_nothing(cache, server):
    server.broken = True
    with pytest.raises(CheckpointError, match=r"what came from http.*x.safetensors was removed: .*broke off"):
        zoo.load(source(server))
    assert names(cache) == []
    server.broken = False
    zoo.load(source(server))


def test_a_file_with_another_digest_is_removed(cache, server):
    server.files["/x.safetensors"] = CONTENT[:-1] + bytes([CONTENT[-1] ^ 1])
    with pytest.raises(CheckpointError, match=f"it is not the published file.*expected .{DIGEST}"):
        zoo.load(source(server))
    assert names(cache) == []


def test_a_kept_file_that_has_changed_is_downloaded_again(cache, server, caplog):
    zoo.load(source(server))
    (cache / f"{DIGEST}.safetensors").write_bytes(CONTENT[:-1] + bytes([CONTENT[-1] ^ 1]))
    zoo.load(source(server))
    assert f"{DIGEST}.safetensors is damaged, so it is downloaded again" in caplog.text and len(server.asked) == 2
    (cache / f"{DIGEST}.safetensors").write_bytes(b"")
    server.files.clear()
    with pytest.raises(CheckpointError, match=r"x.safetensors cannot be read: HTTP Error 404"):
        zoo.load(source(server))
    assert names(cache) == []


def test_a_cache_that_cannot_be_written_is_done_without(cache, server, caplog):
    cache.parent.touch()
    zoo.load(source(server))
    assert f"the download is not kept, because {cache} cannot be written" in caplog.text


def test_a_server_that_says_nothing_is_given_up(cache, server, monkeypatch):
    monkeypatch.setattr(addresses, "SECONDS_WITHOUT_AN_ANSWER", 0.2)
    answer = []
    server.go_when = lambda: bool(answer)
    with pytest.raises(CheckpointError, match="x.safetensors cannot be read: .*timed out"):
        zoo.load(source(server))
    answer.append(True)
    assert names(cache) == [] and socket.getdefaulttimeout() is None
