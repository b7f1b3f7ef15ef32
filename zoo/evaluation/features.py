"""Scikit-learn transformer that returns the features of a trained model."""

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
    """Scikit-learn transformer that applies ``model.transform`` of a trained model to images.

        make_pipeline(Features("rbm"), LogisticRegression()).fit(X, y)

    ``fit`` loads the model and does not train it.

    Args:
        source: an argument of ``zoo.load``, such as the name of a pretrained checkpoint or a path. It can also be a
            model. ``fit`` then puts this model in eval mode.
    """

    def __init__(self, source="rbm"):
        self.source = source

    def fit(self, X, y=None):
        """Load the model and check the images ``X``. The labels ``y`` are not used.

        Raises:
            UserError: for a model without ``transform``, or images of the wrong size or range.
            ValueError: from scikit-learn, for input that is sparse, empty, complex, or not finite.
        """
        self.model_ = zoo.load(self.source) if isinstance(self.source, str | Path) else self.source.eval()
        if not isinstance(self.model_, capabilities.Features):
            raise UserError(f"{type(self.model_).__name__} has no method transform(x); choose a model with features")
        X = self._validated(X, reset=True)
        self._n_features_out = self._features(X[:1]).shape[1]
        return self

    def transform(self, X) -> np.ndarray:
        """Return the features, (n, H), float32, of images ``X`` in [0, 1], (n, V) or (n, C, H, W).

        Raises:
            UserError: for pixels outside [0, 1], or images that do not have the V pixels of the model.
            ValueError: from scikit-learn, as in :meth:`fit`.
        """
        check_is_fitted(self, "model_")
        return self._features(self._validated(X, reset=False))

    def _validated(self, X, reset: bool) -> np.ndarray:
        """Return ``X``, (n, V), after scikit-learn's checks. Images with more axes are flattened first."""
        if isinstance(X, np.ndarray | torch.Tensor) and X.ndim > 2:
            X = np.asarray(X).reshape(len(X), -1)
        return validate_data(self, X, dtype=np.float32, reset=reset, ensure_min_features=2)

    def _features(self, X: np.ndarray) -> np.ndarray:
        parts = [self.model_.transform(x.to(self.model_.device)).cpu() for x in torch.tensor(X).split(IMAGES_AT_ONCE)]
        return torch.cat(parts).numpy()
