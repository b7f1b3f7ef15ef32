"""A trained model's features as a step of a scikit-learn pipeline."""

from pathlib import Path

import numpy as np
import torch
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.utils.validation import check_is_fitted

import zoo
from zoo.checks import capabilities
from zoo.checks.errors import UserError

IMAGES_AT_ONCE = 1000


class Features(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):
    """``model.transform`` of images, of a model that was trained before; ``fit`` loads it and learns nothing.

        make_pipeline(Features("rbm"), LogisticRegression()).fit(X, y)

    Args:
        source: what ``zoo.load`` takes, the name of a pretrained checkpoint or a path; or a model, put in eval mode.
    """

    def __init__(self, source="rbm"):
        self.source = source

    def fit(self, X, y=None):
        """Load the model; images ``X`` and labels ``y`` are only looked at.

        Raises:
            UserError: for a model without ``transform``, or images that it does not take.
        """
        self.model_ = zoo.load(self.source) if isinstance(self.source, str | Path) else self.source.eval()
        if not isinstance(self.model_, capabilities.Features):
            raise UserError(f"{type(self.model_).__name__} has no method transform(x), so it has no features to give")
        X = np.asarray(X)
        self.n_features_in_ = X[0].size
        self._n_features_out = self.transform(X[:1]).shape[1]
        return self

    def transform(self, X) -> np.ndarray:
        """Features of images ``X`` in [0, 1], (n, 784) or (n, 1, 28, 28); (n, H), float32.

        Raises:
            UserError: for pixels outside [0, 1], or another number of them.
        """
        check_is_fitted(self, "model_")
        images = torch.as_tensor(np.asarray(X, dtype=np.float32))
        parts = [self.model_.transform(x.to(self.model_.device)).cpu() for x in images.split(IMAGES_AT_ONCE)]
        return torch.cat(parts).numpy()
