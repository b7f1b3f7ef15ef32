"""A trained model's features as a step of a scikit-learn pipeline."""

from pathlib import Path

import numpy as np
import torch
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.utils.validation import check_is_fitted, validate_data

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
            ValueError: scikit-learn's, for input that is sparse, empty, complex, or not finite.
        """
        self.model_ = zoo.load(self.source) if isinstance(self.source, str | Path) else self.source.eval()
        if not isinstance(self.model_, capabilities.Features):
            raise UserError(f"{type(self.model_).__name__} has no method transform(x), so it has no features to give")
        X = self._validated(X, reset=True)
        self._n_features_out = self._features(X[:1]).shape[1]
        return self

    def transform(self, X) -> np.ndarray:
        """Features of images ``X`` in [0, 1], (n, 784) or (n, 1, 28, 28); (n, H), float32.

        Raises:
            UserError: for pixels outside [0, 1], or another number of them.
            ValueError: scikit-learn's, as :meth:`fit`.
        """
        check_is_fitted(self, "model_")
        return self._features(self._validated(X, reset=False))

    def _validated(self, X, reset: bool) -> np.ndarray:
        """``X`` as scikit-learn checks it, (n, 784); images of more axes are flattened first."""
        if isinstance(X, np.ndarray | torch.Tensor) and X.ndim > 2:
            X = np.asarray(X).reshape(len(X), -1)
        return validate_data(self, X, dtype=np.float32, reset=reset, ensure_min_features=2)

    def _features(self, X: np.ndarray) -> np.ndarray:
        parts = [self.model_.transform(x.to(self.model_.device)).cpu() for x in torch.tensor(X).split(IMAGES_AT_ONCE)]
        return torch.cat(parts).numpy()
