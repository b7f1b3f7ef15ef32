"""Features of the Inception network of torch-fidelity, for the FID and the KID of images in colour.

The FID of papers is the Frechet distance in the last features of this network (Heusel et al. 2017, arXiv:1706.08500).
The network was trained on photographs. Its weights are those of TensorFlow's Inception of December 2015.

The network resizes images to 299 x 299 as TensorFlow 1 did, without antialiasing. Published values use this rule. The
metrics of torchmetrics use antialiasing by default, so that their values differ for images of other sizes. They agree
with ``antialias=False``, or with ``feature=InceptionFeatures()``.

torch-fidelity would unpickle its file of weights, and would download it without a comparison of the digest. Here the
digest is compared first, and only tensors are read.
"""

import hashlib
import io
from pathlib import Path

import torch
from torch import Tensor, nn

from zoo.checks.errors import UserError
from zoo.datamodules.files import DataError, Missing, damaged, fetch_missing

SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"  # of the file at torch-fidelity's address
LAYER = "2048"  # name of the last features, which FID and KID use


class InceptionFeatures(nn.Module):
    """The last features of the Inception network. ``FrechetInceptionDistance(feature=...)`` also takes this module.

    The first use downloads the weights (96 MB) to the cache of ``torch.hub``.

    Args:
        weights: file of weights, as torch-fidelity publishes it. None uses the cache of ``torch.hub``.

    Raises:
        UserError: if torch-fidelity is not installed.
        DataError: if the weights cannot be downloaded, or if the file in the cache is damaged.
    """

    num_features = 2048
    images_at_once = 50

    def __init__(self, weights: Path | None = None):
        super().__init__()
        check_installed()
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

        self.network = FeatureExtractorInceptionV3("inception-v3-compat", [LAYER], _plain_copy(weights or _cached()))

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """Return the features, (B, 2048), of images (B, C, H, W) of any size, with one grey channel or three colours.

        Images are floats in [0, 1], or bytes. The network takes bytes, so floats are rounded. Grey is repeated.
        """
        if images.is_floating_point():
            images = (images * 255).round().clamp(0, 255).byte()
        return self.network(images.expand(-1, 3, -1, -1))[0]

    def train(self, mode: bool = True) -> "InceptionFeatures":
        """Keep the network in eval mode."""
        return super().train(False)


def check_installed() -> None:
    """Raise UserError if torch-fidelity is not installed."""
    try:
        import torch_fidelity  # noqa: F401
    except ModuleNotFoundError:
        raise UserError(
            "features of Inception need the package torch-fidelity: pip install 'generative-zoo[metrics]'"
        ) from None


def _cached() -> Path:
    """Return the verified file of weights in the cache of ``torch.hub``. Download it if it is missing."""
    from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3

    path = Path(torch.hub.get_dir(), "checkpoints", URL_INCEPTION_V3.rpartition("/")[2])

    def missing() -> list[Missing]:
        return [] if path.is_file() else [Missing(path, [URL_INCEPTION_V3], _intact)]

    fetch_missing(
        "the Inception network", missing, f"Put the file {path.name} there, which is at {URL_INCEPTION_V3} (96 MB)"
    )
    if not _intact(path):
        raise damaged(path)
    return path


def _intact(path: Path) -> bool:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() == SHA256


def _plain_copy(path: Path) -> io.BytesIO:
    """Return a file in memory with the tensors of a file of weights. torch-fidelity then unpickles only tensors."""
    copy = io.BytesIO()
    try:
        torch.save(torch.load(path, map_location="cpu", weights_only=True), copy)
    except Exception as error:  # a damaged file can raise any exception
        raise DataError(f"{path} cannot be read as weights of the Inception network: {error}") from error
    copy.seek(0)
    return copy
