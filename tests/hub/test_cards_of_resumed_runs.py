"""Tests that the card of a run that was interrupted twice describes the whole run."""

from types import SimpleNamespace

from helpers import TINY, checkpoint, run

import zoo
from zoo import hub
from zoo.hub import exporting


def test_the_card_of_a_run_that_resumed_twice_sums_its_seconds_and_has_its_commands(tmp_path, monkeypatch):
    """The clock of each part begins at 0, and moves by 100 seconds at each reading. ``earlier`` holds sums."""
    monkeypatch.setattr(zoo, "WEIGHTS", tmp_path / "weights")
    folder, few = tmp_path / "run", [*TINY["vae"], "callbacks=none", "test=false", "trainer.limit_train_batches=2"]
    resumed = f"ckpt={folder}/checkpoints/last.ckpt"
    for epochs, commit in enumerate("abc", start=1):
        clock = iter(range(0, 10_000, 100))  # one reading when training begins, and one for each checkpoint
        time = SimpleNamespace(monotonic=lambda clock=clock: next(clock))
        monkeypatch.setattr("zoo.callbacks.run_record.time", time)
        monkeypatch.setattr("zoo.callbacks.run_record.commit", lambda commit=commit: commit)
        monkeypatch.setattr("zoo.callbacks.run_record.run_command", lambda absolute=False, n=epochs: f"part {n}")
        run(folder, *few, f"trainer.max_epochs={epochs}", *([resumed] if epochs > 1 else []))
    exporting.export(folder, "vae")
    card, record = hub.read_card("vae"), checkpoint(folder)["record"]
    assert [(part["command"], part["commit"]) for part in card["earlier"]] == [("part 1", "a"), ("part 2", "b")]
    assert (card["command"], card["commit"], card["epochs"], card["steps"]) == ("part 3", "c", 3, 6)
    first, second = (part["seconds"] for part in card["earlier"])
    assert first >= 100 and first + 100 <= second and second + 100 <= card["seconds"] <= record["seconds"]
