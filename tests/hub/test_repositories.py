"""Tests of models in repositories of the Hugging Face Hub. A local server answers as the Hub does."""

import hashlib
import json
import math
import os
import pickle
import re
import sys
from types import SimpleNamespace

import hub_server
import pytest
import torch
from helpers import TINY, Pixel, assert_same, run
from huggingface_hub import ModelCard, constants
from processes import done
from safetensors.torch import save

import zoo
from zoo.__main__ import main
from zoo.commands.inputs import of_published_data
from zoo.hub import CheckpointError, pushing, repositories
from zoo.hub.exporting import golden_terms
from zoo.hub.pushing import push

REPO = "someone/vae"


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    run(folder, *TINY["vae"], "debug=fast", "test=false", "logger=none", "callbacks=none")
    return folder


def use(hub, home, patch, token=hub_server.TOKEN):
    """Point huggingface_hub to a server, with an empty cache. It reads these settings only when it is imported."""
    patch.setattr(constants, "ENDPOINT", hub.address)
    patch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.address + "/{repo_id}/resolve/{revision}/{filename}")
    patch.setattr(constants, "HF_HUB_DISABLE_XET", True)  # the server stores large files by the older protocol
    patch.setattr(constants, "HF_HUB_CACHE", str(home / "cache"))
    patch.setattr(constants, "HF_TOKEN_PATH", str(home / "token"))
    patch.setenv("no_proxy", "127.0.0.1")
    patch.delenv("HF_TOKEN", raising=False)
    if token is not None:
        patch.setenv("HF_TOKEN", token)


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """Yield a server without repositories. The user is logged in, and the cache is empty."""
    with hub_server.running() as hub:
        use(hub, tmp_path, monkeypatch)
        yield hub


@pytest.fixture(scope="module")
def pushed(trained, tmp_path_factory):
    """Push a run once. Return the files of the repository, and its address."""
    with pytest.MonkeyPatch.context() as patch, hub_server.running() as hub:
        use(hub, tmp_path_factory.mktemp("home"), patch)
        address = push(trained, REPO, license="mit")
        (sha,) = hub.repositories[REPO].commits.keys() - {next(iter(hub.repositories[REPO].commits))}
        return SimpleNamespace(files=hub.repositories[REPO].commits[sha], address=address, sha=sha, asked=hub.asked)


@pytest.fixture
def filled(hub, pushed):
    """Return the server after the push, with nothing asked yet."""
    hub.repositories[REPO] = hub_server.Repository(private=False)
    hub.repositories[REPO].commit("main", pushed.files)
    return hub


def test_a_push_is_one_commit_of_weights_cards_and_a_picture(pushed):
    assert set(pushed.files) == {"model.safetensors", "model.json", "model.png", "README.md"}
    assert pushed.address.endswith(f"/{REPO}/commit/{pushed.sha}")
    assert [path for _, path in pushed.asked if "/commit/" in path] == [f"/api/models/{REPO}/commit/main"]
    card = json.loads(pushed.files["model.json"])
    assert card["sha256"] == hashlib.sha256(pushed.files["model.safetensors"]).hexdigest() and card["name"] == "vae"


def test_a_pushed_run_loads_with_its_weights_from_an_empty_home(filled, pushed, trained):
    ours, theirs = zoo.load(f"hf:{REPO}"), zoo.load(trained)
    assert not ours.training
    assert_same(dict(ours.state_dict()), dict(theirs.state_dict()))
    assert golden_terms(ours) == golden_terms(theirs) == json.loads(pushed.files["model.json"])["golden"]


def test_a_second_load_needs_no_server_and_says_so(filled, caplog):
    first = zoo.load(f"hf:{REPO}")
    filled.asked.clear()
    zoo.load(f"hf:{REPO}")
    assert not [path for method, path in filled.asked if method == "GET" and "/resolve/" in path]  # files are kept
    assert not caplog.text
    filled.stop()
    assert_same(dict(zoo.load(f"hf:{REPO}").state_dict()), dict(first.state_dict()))
    assert caplog.text.count("does not answer, so the files of hf:someone/vae in the cache are used") == 1
    with pytest.raises(
        CheckpointError, match="hf:someone/gan cannot be read: .* does not answer, and the cache has no"
    ):
        zoo.load("hf:someone/gan")


@pytest.mark.parametrize("status", [503, 429])
def test_a_server_with_a_fault_or_too_many_requests_is_as_good_as_none(status, filled, caplog):
    zoo.load(f"hf:{REPO}")
    filled.status = status
    zoo.load(f"hf:{REPO}")
    assert "does not answer" in caplog.text


def test_a_changed_byte_is_refused(filled, pushed):
    content = bytearray(pushed.files["model.safetensors"])
    content[-1] ^= 1
    filled.repositories[REPO].commit("main", pushed.files | {"model.safetensors": bytes(content)})
    with pytest.raises(CheckpointError, match="the weights of hf:someone/vae are not the published ones: SHA-256"):
        zoo.load(f"hf:{REPO}")


def test_a_changed_byte_in_the_cache_is_refused(filled, tmp_path):
    zoo.load(f"hf:{REPO}")
    (path,) = (tmp_path / "cache").rglob("model.safetensors")
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.resolve().write_bytes(content)
    with pytest.raises(CheckpointError, match="are not the published ones"):
        zoo.load(f"hf:{REPO}")


def test_a_revision_is_honoured(filled, pushed):
    """The weights of the branch, tag or commit are loaded, also after the cache has those of another one."""
    other = zoo.WEIGHTS / "score-mixture"
    files = {f"model{end}": other.with_suffix(end).read_bytes() for end in (".safetensors", ".json")}
    sha = filled.repositories[REPO].refs["main"]
    filled.repositories[REPO].refs["v1"] = sha
    newer = filled.repositories[REPO].commit("main", files)
    for revision, name in {"": "Score", "@v1": "VAE", f"@{sha}": "VAE", f"@{newer}": "Score", "@main": "Score"}.items():
        assert type(zoo.load(f"hf:{REPO}{revision}")).__name__ == name
    with pytest.raises(CheckpointError, match="hf:someone/vae@v2 has no such revision: name a branch, a tag"):
        zoo.load(f"hf:{REPO}@v2")
    filled.stop()
    assert type(zoo.load(f"hf:{REPO}@v1")).__name__ == "VAE"


def test_a_push_between_the_downloads_of_a_card_and_of_its_weights_does_not_mix_two_commits(filled, pushed):
    answer = filled.resolve

    def resolve(repo, body, revision, file, name):
        found = answer(repo, body, revision, file, name)
        if file == "model.json":
            repo.commit("main", pushed.files | {"model.safetensors": b"newer"})
        return found

    filled.resolve = resolve
    assert type(zoo.load(f"hf:{REPO}")).__name__ == "VAE"


def test_one_of_several_models_loads_by_its_name(filled, pushed):
    other = {
        f"{name}{end}": (zoo.WEIGHTS / f"{name}{end}").read_bytes()
        for name in ("score-mixture", "gan-discrete")
        for end in (".safetensors", ".json")
    }
    filled.repositories[REPO].commit("main", other)
    assert type(zoo.load(f"hf:{REPO}/score-mixture@main")).__name__ == "Score"
    models = "its models are hf:someone/vae/gan-discrete, hf:someone/vae/score-mixture"
    with pytest.raises(
        CheckpointError, match=f"hf:someone/vae has no model.safetensors with its card model.json: {models}"
    ):
        zoo.load(f"hf:{REPO}")


def test_what_is_no_model_of_the_zoo_is_named(filled, pushed):
    repository = filled.repositories[REPO]
    repository.commit("main", {"pytorch_model.bin": b"pickle", "config.json": b"{}"})
    with pytest.raises(CheckpointError, match="hf:someone/vae has no model.safetensors.*: zoo push makes a repository"):
        zoo.load(f"hf:{REPO}")
    for wrong in (b"<html>", b"[]", b'{"model": "vae"}'):
        repository.commit("main", pushed.files | {"model.json": wrong})
        with pytest.raises(CheckpointError, match="its model.json is no card with a model and a digest"):
            zoo.load(f"hf:{REPO}")
    for wrong in ("hf:vae", "hf:a/b/c/d", "hf:a/b@", "hf:a/ b"):
        with pytest.raises(CheckpointError, match="must be hf:user/repo, hf:user/repo@revision or hf:user/repo/name@"):
            zoo.load(wrong)


def test_a_private_repository_needs_a_token(hub, pushed, monkeypatch):
    hub.repositories[REPO] = hub_server.Repository(private=True)
    hub.repositories[REPO].commit("main", pushed.files)
    assert type(zoo.load(f"hf:{REPO}")).__name__ == "VAE"
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(CheckpointError, match="does not exist, or it is private: .* log in .run hf auth login, or set"):
        zoo.load(f"hf:{REPO}")
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    with pytest.raises(
        CheckpointError, match="refuses hf:someone/vae: Invalid credentials in Auth.* Log in with a token"
    ):
        zoo.load(f"hf:{REPO}")


def test_the_readme_has_the_metrics_of_the_card(pushed, tmp_path):
    (tmp_path / "README.md").write_bytes(pushed.files["README.md"])
    readme, card = ModelCard.load(tmp_path / "README.md"), json.loads(pushed.files["model.json"])
    assert {r.metric_type: r.metric_value for r in readme.data.eval_results} == card["metrics"]
    assert {(r.task_type, r.dataset_type, r.dataset_split) for r in readme.data.eval_results} == {
        ("unconditional-image-generation", "digits", "test")
    }
    assert readme.data.license == "mit" and readme.data.model_name == "vae" and {"zoo", "vae"} <= set(readme.data.tags)
    assert card["protocol"] in readme.text and card["command"] in readme.text and "![" in readme.text
    (code,) = re.findall("```python\n(.*?)```", readme.text, re.DOTALL)
    assert code.count("\n") == 4 and 'zoo.load("hf:someone/vae")' in code


def command(monkeypatch, capsys, *arguments):
    monkeypatch.setattr(sys, "argv", ["zoo", *map(str, arguments)])
    main()
    return capsys.readouterr().out


def test_a_second_push_updates_and_a_pretrained_checkpoint_keeps_its_card(filled, monkeypatch, capsys):
    """The repository exists already. The checkpoint is that of the zoo, byte by byte."""
    printed = command(monkeypatch, capsys, "push", "score-mixture", REPO)
    assert f"Pushed to {filled.address}/{REPO}/commit/" in printed and f'zoo.load("hf:{REPO}")' in printed
    files = filled.repositories[REPO].commits[filled.repositories[REPO].refs["main"]]
    for end in (".safetensors", ".json"):
        assert files[f"model{end}"] == (zoo.WEIGHTS / f"score-mixture{end}").read_bytes()
    readme = ModelCard(files["README.md"].decode())
    assert readme.data.license is None and readme.data.pipeline_tag == "other"


@pytest.mark.parametrize("name", ["skipgram", "classifier", "gan-discrete"])
def test_every_kind_of_model_has_a_readme(name, hub, tmp_path, monkeypatch, capsys):
    printed = command(monkeypatch, capsys, "push", name, REPO, "--dry-run", tmp_path / "files")
    assert "Nothing was uploaded" in printed and not hub.asked
    readme = ModelCard.load(tmp_path / "files" / "README.md")
    card = json.loads((tmp_path / "files" / "model.json").read_text(encoding="utf-8"))
    assert {r.metric_name: r.metric_value for r in readme.data.eval_results} == card["metrics"]


def test_a_metric_that_is_not_finite_is_only_in_the_table(tmp_path):
    push("score-mixture", REPO, folder=tmp_path)
    path = tmp_path / "model.json"
    card = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(card | {"metrics": {"a": math.inf, "b": 1.0}}), encoding="utf-8")
    pushing._write_readme(repositories.library(), tmp_path / "model.safetensors", REPO, None)
    readme = ModelCard.load(tmp_path / "README.md")
    assert [result.metric_name for result in readme.data.eval_results] == ["b"] and "| a | inf |" in readme.text


def test_a_readme_of_another_project_is_not_replaced(tmp_path):
    (tmp_path / "README.md").write_text("mine", encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"has another README.md, which would be replaced: choose a new folder"):
        push("score-mixture", REPO, folder=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["README.md"]
    for _ in range(2):  # files of an earlier dry run are replaced
        push("score-mixture", REPO, folder=tmp_path / "new")


def test_a_push_that_cannot_work_is_refused_before_the_work(hub, trained, pushed, monkeypatch):
    def refused(message, *args, **options):
        with pytest.raises(CheckpointError, match=message) as error:
            push(*args, **options)
        assert "\n" not in str(error.value)

    refused("a repository must be user/repo, got 'vae'", trained, "vae")
    refused("a b/c cannot be used: Repo id must", trained, "a b/c")
    refused("refuses nobody/vae: You don't have the rights", "score-mixture", "nobody/vae")
    refused('refuses someone/vae: .*"license" must be one of', "score-mixture", REPO, license="none")
    hub.full = True
    refused("refuses someone/vae: no storage is left", "score-mixture", REPO)
    hub.repositories[REPO] = hub_server.Repository(private=False)
    refused("someone/vae exists and is public, so --private has no effect", trained, REPO, private=True)
    monkeypatch.delenv("HF_TOKEN")
    refused("a push to someone/vae needs a login at the Hugging Face Hub: run hf auth login", trained, REPO)
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    refused("the Hugging Face Hub refuses someone/vae: status 401. Log in with a token that", trained, REPO)
    hub.stop()
    monkeypatch.setenv("HF_TOKEN", hub_server.TOKEN)
    refused("someone/vae cannot be used: .*[Rr]efused", trained, REPO)


def test_a_private_push_makes_a_private_repository(hub):
    push("score-mixture", REPO, private=True)
    assert hub.repositories[REPO].private
    push("score-mixture", REPO, private=True)


def test_every_command_takes_a_repository(filled, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    command(monkeypatch, capsys, "sample", f"hf:{REPO}", "-n", 4, "-o", "a.png")
    assert (tmp_path / "a.png").is_file()
    measured = command(monkeypatch, capsys, "evaluate", f"hf:{REPO}", "--data", "digits")
    assert "test/loss: " in measured


def test_the_data_of_a_card_decide_whether_a_command_has_them(filled, pushed):
    zoo.load(f"hf:{REPO}")
    assert of_published_data(f"hf:{REPO}")
    card = json.loads(pushed.files["model.json"]) | {"data": "flowers"}
    filled.repositories[REPO].commit("main", pushed.files | {"model.json": json.dumps(card).encode()})
    zoo.load(f"hf:{REPO}")
    assert not of_published_data(f"hf:{REPO}")


def test_a_run_begins_from_a_repository(filled, pushed, tmp_path):
    from zoo.hub.initialising import begin_from

    model = zoo.load(f"hf:{REPO}")
    about = begin_from(model, f"hf:{REPO}")
    assert about["sha256"] == hashlib.sha256(pushed.files["model.safetensors"]).hexdigest()


def test_a_class_outside_the_zoo_is_built_only_if_the_user_gives_it(filled):
    weights = save({"grey": torch.tensor(0.25)}, {"model": "pixel", "hyper_parameters": "{}"})
    card = {"model": "pixel", "sha256": hashlib.sha256(weights).hexdigest()}
    files = {"model.safetensors": weights, "model.json": json.dumps(card).encode()}
    filled.repositories[REPO].commit("main", files)
    assert zoo.load(f"hf:{REPO}", Pixel).grey.item() == 0.25
    with pytest.raises(CheckpointError, match="hf:someone/vae holds a model named 'pixel'; the known models are vae"):
        zoo.load(f"hf:{REPO}")


def test_a_pickle_is_never_read(filled, tmp_path, monkeypatch):
    """Its digest is right, but only safetensors files are read."""
    monkeypatch.chdir(tmp_path)

    class Hostile:
        def __reduce__(self):
            return os.system, ("touch pickle-ran",)

    weights = pickle.dumps(Hostile())
    card = {"model": "vae", "sha256": hashlib.sha256(weights).hexdigest()}
    files = {"model.safetensors": weights, "model.json": json.dumps(card).encode()}
    filled.repositories[REPO].commit("main", files)
    with pytest.raises(CheckpointError, match="hf:someone/vae is not a safetensors file"):
        zoo.load(f"hf:{REPO}")
    assert not (tmp_path / "pickle-ran").exists()


@pytest.mark.slow
def test_push_and_load_as_two_users_do_who_set_variables_only(hub, trained, tmp_path):
    """Each command is a process with an empty home folder. The documented variables choose the server."""
    variables = {"HF_ENDPOINT": hub.address, "HF_HUB_DISABLE_XET": "1", "no_proxy": "127.0.0.1"}
    first = {**variables, "HF_HOME": str(tmp_path / "a"), "HF_TOKEN": hub_server.TOKEN}
    ended = done("-m", "zoo", "push", trained, REPO, cwd=tmp_path, **first)
    assert ended.returncode == 0 and f"Pushed to {hub.address}/{REPO}/commit/" in ended.stdout, ended.stderr
    second = {**variables, "HF_HOME": str(tmp_path / "b"), "HF_TOKEN": ""}
    ended = done("-m", "zoo", "sample", f"hf:{REPO}", "-n", "2", "-o", "a.png", cwd=tmp_path, **second)
    assert ended.returncode == 0 and (tmp_path / "a.png").is_file(), ended.stderr
    hub.stop()
    ended = done("-m", "zoo", "sample", f"hf:{REPO}", "-n", "2", "-o", "b.png", cwd=tmp_path, **second)
    assert ended.returncode == 0 and ended.stderr.count("does not answer") == 1
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    ended = done("-m", "zoo", "push", trained, REPO, cwd=tmp_path, **second)
    assert ended.returncode == 1 and ended.stderr.startswith("error: a push to someone/vae needs a login")


def test_without_the_package_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    monkeypatch.setitem(sys.modules, "huggingface_hub.errors", None)
    with pytest.raises(CheckpointError, match=r"needs the package huggingface_hub: pip install 'generative-zoo\[hf\]'"):
        zoo.load(f"hf:{REPO}")
