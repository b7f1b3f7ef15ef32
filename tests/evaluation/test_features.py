"""Tests of Features with the estimator checks of scikit-learn."""

import warnings

import numpy as np
import pytest
from scipy.sparse import csr_matrix
from sklearn.utils.estimator_checks import check_estimator

from zoo.checks.errors import UserError
from zoo.evaluation.features import Features
from zoo.rbm import RBM

# These checks use a few columns of arbitrary numbers, which the model rejects. It accepts 784 pixels in [0, 1].
OF_OTHER_DATA = """check_fit_score_takes_y check_estimators_overwrite_params check_dont_overwrite_parameters
check_estimators_fit_returns_self check_readonly_memmap_input check_n_features_in_after_fitting
check_positive_only_tag_during_fit check_estimators_dtypes check_dtype_object check_pipeline_consistency
check_estimators_nan_inf check_estimators_pickle check_f_contiguous_array_estimator check_transformer_data_not_an_array
check_transformer_general check_transformer_preserve_dtypes check_methods_sample_order_invariance
check_methods_subset_invariance check_fit2d_1sample check_dict_unchanged check_fit_idempotent check_fit_check_is_fitted
check_n_features_in check_fit2d_predict1d"""
EXPECTED = dict.fromkeys(OF_OTHER_DATA.split(), "its data are not images of 784 pixels in [0, 1]")


def test_every_check_of_scikit_learn_passes_or_is_of_other_data():
    """The checks in OF_OTHER_DATA fail, because the model accepts only images. All other checks pass."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        results = check_estimator(
            Features(RBM(num_hidden=3)), expected_failed_checks=EXPECTED, on_fail=None, on_skip=None
        )
    failed = {r["check_name"]: str(r["exception"]) for r in results if r["status"] == "failed"}
    assert not failed and sum(r["status"] == "passed" for r in results) >= 14
    for result in results:
        if result["status"] == "xfail":
            message = str(result["exception"])
            domain = ("784 pixels each", "raised UserError unexpectedly")
            assert any(words in message for words in domain), f"{result['check_name']}: {message}"


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (csr_matrix(np.eye(784)), "Sparse data was passed"),
        (np.full((2, 784), np.nan), "Input X contains NaN"),
        (np.full((2, 784), np.inf), "Input X contains infinity"),
        (np.zeros((2, 784), complex), "Complex data not supported"),
        (np.zeros((0, 784)), "0 sample"),
        (np.zeros((2, 1)), r"1 feature\(s\)"),
        (np.zeros(784), "Expected 2D array, got 1D array"),
    ],
)
def test_input_that_is_no_matrix_of_numbers_has_the_errors_of_scikit_learn(wrong, message):
    features = Features(RBM(num_hidden=3))
    with pytest.raises((ValueError, TypeError), match=message):
        features.fit(wrong)
    features.fit(np.zeros((2, 784)))
    with pytest.raises((ValueError, TypeError), match=message.replace("1 feature\\(s\\)", "feature")):
        features.transform(wrong)


def test_images_of_any_rank_and_type_of_floats_are_taken():
    features = Features(RBM(num_hidden=3)).fit(np.zeros((2, 1, 28, 28)))
    x = np.linspace(0, 1, 3 * 784).reshape(3, 784)
    assert np.array_equal(features.transform(x), features.transform(x.reshape(3, 1, 28, 28).astype(np.float32)))
    with pytest.raises(ValueError, match="X has 783 features, but Features is expecting 784"):
        features.transform(x[:, 1:])
    with pytest.raises(UserError, match="pixels must be numbers from 0 to 1"):
        features.transform(255 * x)


def test_a_model_that_is_given_is_put_in_eval_mode():
    model = RBM(num_hidden=3).train()
    Features(model).fit(np.zeros((2, 784), np.float32))
    assert not model.training
