"""Test of the home folder that Weights & Biases uses."""

import os
import pwd
from types import SimpleNamespace

from zoo.training.wandb_login import keep_wandb_out_of_home


def test_without_home_its_service_is_told_the_one_of_the_table_of_users(tmp_path, monkeypatch):
    """If HOME is not set, it is set to the home folder of the password database.

    The service of Weights & Biases reads only HOME. Without HOME, the service prints its log.
    """
    monkeypatch.delenv("HOME")
    monkeypatch.setattr(pwd, "getpwuid", lambda number: SimpleNamespace(pw_dir=str(tmp_path)))
    keep_wandb_out_of_home(tmp_path / "run")
    assert os.environ["HOME"] == str(tmp_path)
