"""Torch on one thread: the models are too small for more."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support import one_thread


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    with one_thread():
        yield
