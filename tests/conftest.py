"""What all tests share: how hypothesis looks for examples, and a real Redis."""

from __future__ import annotations

import os
from collections.abc import Iterator

import hypothesis
import pytest

from tests.redis_server import redis_server

# A slow machine is not a defect, and on CI a failure must come again.
hypothesis.settings.register_profile(
    "tidegraph", deadline=None, derandomize="CI" in os.environ, print_blob=True
)
hypothesis.settings.load_profile("tidegraph")


@pytest.fixture(scope="session")
def redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Give the address of a Redis that answers; without one the tests that need it fail."""
    with redis_server(tmp_path_factory.mktemp("redis")) as url:
        yield url
