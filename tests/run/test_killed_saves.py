"""Kills at any moment of a save, and disks that are full or fail: a whole checkpoint is left."""

import hashlib
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from feddpa_jax.run import checkpoint, round_state, saver
from feddpa_jax.run.checkpoint import (
    find_damage,
    latest,
    rounds_saved,
)
from feddpa_jax.types import UserError
from tests.run.small_checkpoints import IDENTITY, same_bits, tree
from tests.saved import save

ROOT = Path(__file__).parents[2]


def test_a_failing_disk_keeps_the_last_good_one(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: Path, target: Path) -> None:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", fail)
        with pytest.raises(UserError) as caught:
            save(folder, 2, tree(2), IDENTITY, keep=1)
    assert str(caught.value) == (
        f"{folder / '00002'}: the checkpoint of round 2 could not be written (Input/output error); "
        "the checkpoint of round 1 is kept; make room and start the same command again"
    )
    assert sorted(os.listdir(folder)) == ["00000", "00001"]


def test_other_errors_are_not_hidden(folder: Path) -> None:
    with pytest.raises(TypeError):
        save(folder, 2, tree(2), {"not JSON": object()}, keep=1)
    assert sorted(os.listdir(folder)) == ["00000", "00001"]


FULL_DISK = """
import resource, sys
from pathlib import Path
import numpy as np
from feddpa_jax.run import saver
from feddpa_jax.types import UserError
from tests.run.small_checkpoints import IDENTITY, same_bits, tree
from tests.saved import save

folder = Path(sys.argv[1])
state = {"x": np.random.default_rng(0).normal(size=50_000)}
for foreseen in (True, False):
    if not foreseen:
        print("unforeseen", file=sys.stderr)
        saver.check_room = lambda folder, size: None
    for limit in (100, 5_000, 200_000):
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
        try:
            save(folder, 2, state, {}, keep=1)
        except UserError as error:
            print(error)
"""


def test_a_full_disk_is_one_line(folder: Path) -> None:
    ran = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(folder)],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
    )
    # Libraries may print more where the space ends while they write.
    assert ran.stderr.startswith("unforeseen\n")
    lines = ran.stdout.splitlines()
    assert len(lines) == 6
    for line in lines:
        assert "the checkpoint of round 2 could not be written (File too large)" in line
        assert "the checkpoint of round 1 is kept" in line
    assert sorted(os.listdir(folder)) == ["00000", "00001"]
    found = latest(folder, IDENTITY, warn=pytest.fail)
    assert found is not None
    assert same_bits(found.state(), tree(1))


def die(*arguments: Any, **keywords: Any) -> None:
    """What a power cut does to a process."""
    os.kill(os.getpid(), signal.SIGKILL)


# What is called at each moment of a save, and the last whole round when the process dies there.
MOMENTS: dict[str, tuple[Any, str, int]] = {
    "before the arrays": (os, "posix_fallocate", 1),
    "while Orbax writes": (round_state.Save, "wait", 1),
    "before the record": (saver, "to_json", 1),
    "before the sums": (hashlib, "file_digest", 1),
    "before the flush": (os, "fsync", 1),
    "before the name": (Path, "rename", 1),
    "before older ones go": (checkpoint, "rounds_saved", 2),
    "while older ones go": (os, "rmdir", 2),
}


def save_and_die(folder: Path, moment: str) -> None:
    """Saves round 2, and is killed at a moment of it."""
    owner, name, _ = MOMENTS[moment]
    setattr(owner, name, die)
    save(folder, 2, tree(2), IDENTITY, keep=1)


def all_whole(folder: Path) -> bool:
    """Whether nothing half-written, and nothing half-deleted, is to be seen."""
    return all(find_damage(folder / f"{number:05d}") == "" for number in rounds_saved(folder))


def save_for_ever(folder: Path, last: Any) -> None:
    """Saves round after round, telling which was the last to be whole."""
    for number in range(2, 10_000):
        save(folder, number, tree(number), IDENTITY, keep=2)
        last.value = number


@pytest.fixture(scope="module")
def processes() -> Any:
    """Starts processes that have imported everything but share no thread with this one."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["feddpa_jax.run.saver", "orbax.checkpoint.v1"])
    return context


@pytest.mark.parametrize("moment", MOMENTS)
def test_killed_at_a_moment_of_a_save(folder: Path, processes: Any, moment: str) -> None:
    process = processes.Process(target=save_and_die, args=(folder, moment))
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    found = latest(folder, IDENTITY, warn=pytest.fail)
    assert found is not None
    assert found.round_number == MOMENTS[moment][2]
    assert all_whole(folder)
    assert same_bits(found.state(), tree(found.round_number))
    save(folder, 3, tree(3), IDENTITY, keep=1)
    # Round 0 has the lowest loss.
    assert sorted(os.listdir(folder)) == ["00000", "00003"]


@pytest.mark.parametrize("seed", range(4))
def test_killed_at_any_time(folder: Path, processes: Any, seed: int) -> None:
    last = processes.Value("i", 1)
    process = processes.Process(target=save_for_ever, args=(folder, last))
    process.start()
    deadline = time.monotonic() + 60
    while last.value == 1 and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(random.Random(seed).uniform(0, 0.2))
    process.kill()
    process.join(60)
    assert last.value > 1
    found = latest(folder, IDENTITY, warn=pytest.fail)
    assert found is not None
    assert found.round_number in (last.value, last.value + 1)
    assert same_bits(found.state(), tree(found.round_number))
    # The last two, the one of the lowest loss, and perhaps one that was to go.
    assert len(rounds_saved(folder)) in (3, 4)
    assert all_whole(folder)
