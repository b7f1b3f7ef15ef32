"""Tests of the errors of ``zoo.load`` for names and paths that are misspelt."""

import os

import pytest

import zoo
from zoo.checks.errors import UserError
from zoo.hub import CheckpointError
from zoo.hub.exporting import export


@pytest.fixture
def runs(tmp_path, monkeypatch):
    """Return a folder with runs of two models, which is the working folder."""
    for name in ("vae/2026-11-29_10-00-00-000000", "wgan_clip/2026-11-30_10-00-00-000000"):
        (tmp_path / "runs" / name / "checkpoints").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "runs"


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("vea", r"the pretrained ones are: .*wgan-ring. Did you mean vae\?$"),
        ("DDPM", r"Did you mean ddpm\?$"),
        ("runs/wgan-clip", r"the folder /.*/runs has no wgan-clip and holds vae, wgan_clip. Did you mean wgan_clip\?$"),
        ("runs/vaee/2026-11-29_10-00-00-000000/checkpoints/last.ckpt", r"has no vaee .* Did you mean vae\?$"),
        ("runs/vae/2026-11-29_10-00", r"runs/vae has no 2026-11-29_10-00 and holds 2026-11-29_10-00-00-000000. Did"),
        (
            "runs/vae/2026-11-29_10-00-00-000000/checkpoints/last.ckpt",
            r"checkpoints has no last.ckpt and holds nothing",
        ),
        ("rusn/vae", r"the folder /.* has no rusn and holds runs. Did you mean runs\?$"),
        ("/no/such/folder", r"the folder / has no no and holds "),
    ],
)
def test_an_error_names_what_is_there(runs, source, message):
    with pytest.raises(CheckpointError, match=message) as raised:
        zoo.load(source)
    assert str(raised.value).startswith(f"{source!r} is neither a file nor a pretrained checkpoint; ")


@pytest.mark.parametrize("second", ["cuda", "VAE", dict])
def test_a_class_that_is_none_is_named(second):
    with pytest.raises(UserError, match=rf"model_class must be .*, got {second!r}; a device is a keyword"):
        zoo.load("vae", second)


def test_only_runs_are_exported():
    with pytest.raises(CheckpointError, match="vae is published already: give a run folder, or a checkpoint file"):
        export("vae", "my-vae")


def test_a_message_shows_a_few_new_runs_of_a_large_folder(runs):
    for second in range(30):
        os.mkdir(runs / "vae" / f"2026-11-30_10-00-{second:02}")
    with pytest.raises(CheckpointError) as raised:
        zoo.load("runs/vae/x")
    assert str(raised.value).endswith(f"holds {', '.join(f'2026-11-30_10-00-{n}' for n in range(25, 30))}.")


def test_a_folder_that_cannot_be_read_is_named(runs, monkeypatch):
    def iterdir(self):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("zoo.checks.sources.Path.iterdir", iterdir)
    with pytest.raises(CheckpointError, match="runs has no x and holds nothing"):
        zoo.load("runs/x")
