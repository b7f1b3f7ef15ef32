"""Tests of the home folder and the credentials of Weights & Biases."""

import os
import pwd
import socket
from types import SimpleNamespace
from urllib.parse import urlsplit

import pytest
import wandb

from zoo.training.wandb_login import keep_wandb_out_of_home, wandb_credentials

KEY = "0" * 40


def test_without_home_its_service_is_told_the_one_of_the_table_of_users(tmp_path, monkeypatch):
    """If HOME is not set, it is set to the home folder of the password database.

    The service of Weights & Biases reads only HOME. Without HOME, the service prints its log.
    """
    monkeypatch.delenv("HOME")
    monkeypatch.setattr(pwd, "getpwuid", lambda number: SimpleNamespace(pw_dir=str(tmp_path)))
    keep_wandb_out_of_home(tmp_path / "run")
    assert os.environ["HOME"] == str(tmp_path)


@pytest.fixture
def home(tmp_path, monkeypatch):
    """Yield an empty home folder. Weights & Biases forgets its settings and credentials before and after the test."""
    for name in ("WANDB_MODE", "WANDB_API_KEY", "NETRC"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    wandb.teardown()
    yield tmp_path
    wandb.teardown()


def found(capfd) -> bool:
    """Return whether a new process would find credentials. It prints nothing."""
    wandb.teardown()
    answer = wandb_credentials()
    assert capfd.readouterr() == ("", "")
    return answer


def test_credentials_are_found_where_wandb_keeps_them(home, monkeypatch, capfd):
    assert not found(capfd)
    (home / ".netrc").touch(mode=0o600)
    for host in ("api.wandb.ai", urlsplit(wandb.Settings().base_url).netloc):
        (home / ".netrc").write_text(f"machine {host}\n  login user\n  password {KEY}\n", encoding="utf-8")
        assert found(capfd)
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setblocking(False)
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{server.getsockname()[1]}")
        assert not found(capfd)
        monkeypatch.setenv("WANDB_API_KEY", KEY)
        assert found(capfd)
        with pytest.raises(BlockingIOError):  # no one asked the server
            server.accept()
    monkeypatch.delenv("WANDB_API_KEY")
    (home / ".config" / "wandb").mkdir(parents=True)
    settings = f"[default]\napi_key = {KEY}\n"
    (home / ".config" / "wandb" / "settings").write_text(settings, encoding="utf-8")
    assert found(capfd)  # the netrc file is not the only place


def test_the_search_for_credentials_changes_no_setting(home, monkeypatch):
    """Mode offline does not hide credentials, and it stays. Wandb is no more silent than before."""
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    assert wandb_credentials()
    settings = wandb.sdk.wandb_setup.singleton().settings
    assert settings.mode == "offline" and not settings.silent


def test_a_key_in_a_wrong_form_is_named_and_does_not_count(home, monkeypatch, caplog):
    monkeypatch.setenv("WANDB_API_KEY", "x")
    assert not wandb_credentials()
    assert "cannot use the credentials: WANDB_API_KEY invalid: API key must have 40+ characters" in caplog.text
