"""Every command is killed at every file operation; started again it ends with the same bits.

A sample of the operations is tried; FEDDPA_ALL_KILLS=1 tries all of them.
"""

import os
import shutil
from collections.abc import Callable
from concurrent.futures import Executor, Future
from pathlib import Path

import numpy as np
import pytest

from feddpa_jax.cli.program import main
from feddpa_jax.files.disk import is_leftover
from feddpa_jax.run import saver
from tests.e2e.kills import watched
from tests.e2e.small_runs import command_of

pytestmark = pytest.mark.usefixtures("computed_once")

ALL = os.environ.get("FEDDPA_ALL_KILLS") == "1"
# By command: how many operations are tried, if not all.
SAMPLES = {"train": 20, "eval": 10, "weigh": 8, "report": 10, "export": 14}


def bits(root: Path) -> dict[str, bytes | None]:
    """Every file below a folder, and every folder."""
    return {
        str(path.relative_to(root)): path.read_bytes() if path.is_file() else None
        for path in sorted(root.rglob("*"))
    }


@pytest.fixture(scope="module")
def finished(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a finished run."""
    root = tmp_path_factory.mktemp("finished") / "root"
    root.mkdir()
    assert main(command_of("train", root, data)) == 0
    return root


def chosen(count: int, sample: int) -> list[int]:
    """The operations at which the process is killed: all, or a sample with the first and last."""
    if ALL or count <= sample:
        return list(range(count))
    rng = np.random.default_rng(count)
    inner = rng.choice(np.arange(1, count - 1), sample - 2, replace=False)
    return [0, *sorted(inner.tolist()), count - 1]


class Late(Future):
    """Work that is done when it is waited for, and not before."""

    def __init__(self, worker: Executor, work: Callable[[], None]):
        super().__init__()
        self.work = work

    def result(self, timeout: float | None = None) -> None:
        """Does the work."""
        self.work()


def at_once(worker: Executor, work: Callable[[], None]) -> Future[None]:
    """Work that is done before anything else is."""
    work()
    done: Future[None] = Future()
    done.set_result(None)
    return done


def in_order(done: list[str]) -> list[str]:
    """Operations without those of Orbax, which works on its own files in several threads."""
    own = ("/record.json", "/manifest.json", ".writing")
    return [what for what in done if ".writing/" not in what or what.endswith(own)]


# A checkpoint is written beside the next round: before everything that this does to files, or after
# it. What lies between is tried by time in `test_killed_saves.py`.
ORDERS = {"first": at_once, "last": Late}


@pytest.mark.parametrize(
    ("name", "order"),
    [("train", "first"), ("train", "last"), *((n, "first") for n in list(SAMPLES)[1:])],
)
def test_killed_anywhere_and_started_again(
    name: str, order: str, finished: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = finished.parent / f"{name}_root"
    monkeypatch.setattr(saver, "in_background", ORDERS[order])

    def begin() -> None:
        shutil.rmtree(root, ignore_errors=True)
        shutil.copytree(finished, root)
        if name == "train":
            shutil.rmtree(root / "run")

    command = command_of(name, root, data)
    begin()
    with watched(root) as whole:
        assert main(command) == 0
    expected = bits(root)
    assert not [path for path in expected if is_leftover(Path(path))]
    assert len(whole.done) > 10
    for at in chosen(len(whole.done), SAMPLES[name]):
        begin()
        with watched(root, at) as killed:
            main(command)
        what = f"killed at operation {at}: {whole.done[at]}"
        assert killed.dead, what
        assert len(killed.done) == at + 1, what
        begun = in_order(killed.done)
        assert begun == in_order(whole.done)[: len(begun)], what
        if name == "export" and (root / "exports" / "one").exists():
            # It was whole, so it is not made again; what was killed is the removal of the lock.
            assert at >= len(whole.done) - 2, what
            (root / "exports" / ".one.feddpa.lock").unlink(missing_ok=True)
        else:
            assert main(command) == 0, what
        found = bits(root)
        assert found.keys() == expected.keys(), what
        assert [path for path in found if found[path] != expected[path]] == [], what
