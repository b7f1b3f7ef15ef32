"""Tests that odd and bad images, arrays and folders are read rightly, or refused with a message before training."""

import pytest
from bad_images import Case, cases, outcome

CASES = cases()


@pytest.fixture(scope="module", autouse=True)
def prepared_images(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ZOO_DATA", str(tmp_path_factory.mktemp("data")))
        yield


@pytest.mark.parametrize("case", CASES, ids=[str(i) for i in range(len(CASES))])
def test_an_image_is_read_rightly_or_named(case: Case, tmp_path):
    right, got = outcome(case, tmp_path / "folder")
    assert right, f"{case.name}: {got}"
