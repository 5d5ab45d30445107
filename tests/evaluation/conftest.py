import pytest

from consistency_models.data import digits
from consistency_models.evaluation.features import Classifier


@pytest.fixture(scope="session")
def cache(tmp_path_factory):
    """A cache folder that all tests of this folder share, in place of the user's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def digit_set():
    return digits()


@pytest.fixture(scope="session")
def classifier(cache, digit_set):
    """The classifier of conf/features/classifier.yaml, trained on the digits."""
    return Classifier(digit_set)
