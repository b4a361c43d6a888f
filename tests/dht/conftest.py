"""Trio shuffles the tasks that are ready; with a fixed seed a test that fails fails again."""

import pytest
from trio._core import _run


@pytest.fixture(autouse=True)
def schedule():
    _run._ALLOW_DETERMINISTIC_SCHEDULING = True
    _run._r.seed(0)
