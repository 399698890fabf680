import pytest


@pytest.fixture
def lrrt(store):
    """The one range test of the store."""
    return store.one("lrrt")
