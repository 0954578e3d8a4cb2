"""What tests of commands share: small data, and results that are computed once."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.small_runs import quick, write_data


@pytest.fixture(scope="module")
def computed_once() -> Iterator[None]:
    """For tests of what commands do with their files."""
    with quick():
        yield


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two clients' examples, which no test changes."""
    return write_data(tmp_path_factory.mktemp("data"))
