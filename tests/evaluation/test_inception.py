"""Tests of the features of Inception, with random weights in the published form. Real weights are a large download."""

import hashlib
import sys

import pytest
import torch
from helpers import Quarters
from torch.testing import assert_close
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.kid import KernelInceptionDistance

from zoo.__main__ import main
from zoo.datamodules import files
from zoo.datamodules.files import DataError
from zoo.evaluation import inception
from zoo.evaluation.distances import feature_distances
from zoo.evaluation.inception import InceptionFeatures
from zoo.evaluation.kernels import kid
from zoo.evaluation.manifolds import density_coverage, precision_recall

NAME = "weights-inception-2015-12-05-6726825d.pth"
ADDRESS = f"https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/{NAME}"


def test_the_zoo_and_torchmetrics_agree_on_the_same_features(generator):
    """KID of torchmetrics averages over subsets. One subset of all images is the estimate of the zoo."""
    real, fake = (torch.rand(60, 1, 8, 8, generator=generator) ** power for power in (1, 2))
    found = feature_distances(*(Quarters()(x).double() for x in (real, fake)))
    fid = FrechetInceptionDistance(Quarters(), normalize=True).set_dtype(torch.float64)
    with pytest.warns(UserWarning, match="will save all extracted features"):
        kernel = KernelInceptionDistance(Quarters(), subsets=1, subset_size=60, normalize=True)
    for metric in (fid, kernel):
        metric.update(real, real=True)
        metric.update(fake, real=False)
    assert_close(fid.compute().item(), found["fid"].value, rtol=1e-3, atol=0)
    assert_close(kernel.compute()[0].item(), found["kid"].value, rtol=1e-3, atol=0)


def test_without_torch_fidelity_the_command_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch_fidelity", None)
    monkeypatch.setattr(sys, "argv", ["zoo", "distance", "digits", "digits", "--features", "inception"])
    with pytest.raises(
        SystemExit, match=r"^error: .* need the package torch-fidelity: pip install 'generative-zoo\[metrics\]'$"
    ):
        main()


@pytest.fixture
def cache(monkeypatch, tmp_path):
    """Return the folder of weights in an empty cache of ``torch.hub``. No server answers."""
    pytest.importorskip("torch_fidelity")
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    monkeypatch.setattr(files, "reachable", lambda addresses: False)
    return tmp_path / "hub" / "checkpoints"


def test_without_weights_and_network_the_error_names_the_file_its_place_and_its_address(cache):
    with pytest.raises(DataError) as raised:
        InceptionFeatures()
    message = str(raised.value)
    assert all(text in message for text in (NAME, ADDRESS, str(cache), "no server answers")) and "\n" not in message
    assert not cache.exists()


def test_weights_with_another_digest_are_refused(cache):
    cache.mkdir(parents=True)
    (cache / NAME).write_bytes(b"no weights")
    with pytest.raises(DataError, match=f"{NAME} is damaged: it is not the published file"):
        InceptionFeatures()


class Opened:
    """An object that creates a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_weights_are_never_unpickled(cache, tmp_path):
    torch.save({"fc.weight": Opened(tmp_path / "opened")}, tmp_path / "weights.pth")
    with pytest.raises(DataError, match="cannot be read as weights"):
        InceptionFeatures(tmp_path / "weights.pth")
    assert not (tmp_path / "opened").exists()


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Return a file of random weights of Inception, in the form of the published file."""
    pytest.importorskip("torch_fidelity")
    from torch_fidelity import feature_extractor_inceptionv3

    path = tmp_path_factory.mktemp("weights") / NAME
    kind = feature_extractor_inceptionv3.FeatureExtractorInceptionV3

    class Untrained(kind):
        def load_state_dict(self, state):
            pass

    torch.manual_seed(0)
    torch.save({}, path)
    torch.save(Untrained("inception-v3-compat", ["2048"], str(path)).state_dict(), path)
    return path


@pytest.mark.slow
def test_features_are_those_of_torchmetrics_without_antialiasing(weights, generator):
    images = torch.randint(0, 256, (4, 3, 32, 40), generator=generator, dtype=torch.uint8)
    ours = InceptionFeatures(weights)
    theirs = FrechetInceptionDistance(2048, feature_extractor_weights_path=str(weights), antialias=False).inception
    assert_close(ours(images), theirs(images))
    assert ours(images).shape == (4, InceptionFeatures.num_features) and ours.train().training is False
    assert torch.equal(ours(images.float() / 255), ours(images))
    grey = images[:, :1]
    assert torch.equal(ours(grey), ours(grey.repeat(1, 3, 1, 1)))
    assert FrechetInceptionDistance(ours).real_features_sum.shape == (2048,)
    with_antialias = FrechetInceptionDistance(2048, feature_extractor_weights_path=str(weights)).inception
    large = torch.randint(0, 256, (1, 3, 400, 400), generator=generator, dtype=torch.uint8)
    assert not torch.allclose(ours(large), with_antialias(large), rtol=1e-3)


@pytest.mark.slow
def test_the_command_compares_images_in_features_of_inception(weights, cache, monkeypatch, capsys, tmp_path):
    import numpy as np

    cache.mkdir(parents=True)
    (cache / NAME).write_bytes(weights.read_bytes())
    monkeypatch.setattr(inception, "SHA256", hashlib.sha256(weights.read_bytes()).hexdigest())
    sets = np.random.default_rng(0).integers(0, 256, (2, 8, 20, 24, 3), dtype=np.uint8)
    for name, images in zip("ab", sets, strict=True):
        np.save(tmp_path / f"{name}.npy", images)
    words = [str(tmp_path / "a.npy"), str(tmp_path / "b.npy"), "--features", "inception", "--format", "csv"]
    monkeypatch.setattr(inception.InceptionFeatures, "images_at_once", 3)
    monkeypatch.setattr("zoo.evaluation.frechet.frechet_standard_error.__defaults__", (2, 0, False))
    monkeypatch.setattr(sys, "argv", ["zoo", "distance", *words])
    main()
    rows = [line.split(",") for line in capsys.readouterr().out.splitlines()][1:]
    network = InceptionFeatures(weights)
    real, fake = (network(torch.from_numpy(images).permute(0, 3, 1, 2)).double() for images in sets)
    wanted = [kid(real, fake), *precision_recall(real, fake), *density_coverage(real, fake)]
    assert [row[0] for row in rows] == ["fid", "kid", "precision", "recall", "density", "coverage"]
    assert_close([float(row[1]) for row in rows[1:]], [value for value, _ in wanted], rtol=1e-3, atol=1e-5)
    assert float(rows[0][1]) > 0 and {tuple(row[i] for i in (3, 5, 7)) for row in rows} == {("inception", "8", "8")}
