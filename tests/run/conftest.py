"""Checkpoints of two rounds, to be damaged."""

import shutil
from pathlib import Path

import pytest

from tests.run.small_checkpoints import IDENTITY, tree
from tests.saved import save


@pytest.fixture(scope="module")
def two_rounds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with rounds 0 and 1, which tests copy before they damage it."""
    folder = tmp_path_factory.mktemp("two_rounds") / "checkpoints"
    for number in (0, 1):
        save(folder, number, tree(number), {**IDENTITY, "validation_loss": number / 4}, keep=3)
    return folder


@pytest.fixture
def folder(two_rounds: Path, tmp_path: Path) -> Path:
    """A copy of rounds 0 and 1."""
    return Path(shutil.copytree(two_rounds, tmp_path / "checkpoints"))
