"""A comparison is killed anywhere; started again, it ends with the bits of one that was not."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from feddpa_jax.cli.program import main
from feddpa_jax.files.disk import is_leftover
from feddpa_jax.run import saver
from tests.e2e.kills import watched
from tests.e2e.small_runs import SETTINGS, quick, write_data
from tests.e2e.test_kills import at_once, bits

ALL = os.environ.get("FEDDPA_ALL_KILLS") == "1"
SAMPLE = 3


@pytest.fixture(scope="module", autouse=True)
def computed_once() -> Iterator[None]:
    with quick():
        yield


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("data"))


def command(out: Path, data: Path) -> list[str]:
    """Two methods, of which one has clients' own parts, and two seeds."""
    own = ["--methods", "fedit,feddpa_t", "--seeds", "0,1", "--out", str(out)]
    return ["compare", *own, "--data.path", str(data), *SETTINGS, "--fed.rounds", "2"]


def test_killed_at_an_operation_on_files(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(saver, "in_background", at_once)
    root = tmp_path / "root"
    out = root / "out"
    root.mkdir()
    with watched(root) as whole:
        assert main(command(out, data)) == 0
    expected = bits(root)
    assert not [path for path in expected if is_leftover(Path(path))]
    assert {"out/report.html", "out/table.csv"} <= expected.keys()
    count = len(whole.done)
    assert count > 100
    chosen: Any = range(count)
    if not ALL:
        # Beside a few anywhere, some in the last files: the page, its tables and its figures.
        rng = np.random.default_rng(0)
        last = next(n for n, what in enumerate(whole.done) if "report" in what)
        chosen = [*rng.choice(last, SAMPLE, replace=False), last + 3, count - 1]
    for at in map(int, chosen):
        for path in sorted(root.rglob("*"), reverse=True):
            path.unlink() if path.is_file() else path.rmdir()
        with watched(root, at) as killed:
            main(command(out, data))
        what = f"killed at operation {at}: {whole.done[at]}"
        assert killed.dead, what
        assert main(command(out, data)) == 0, what
        found = bits(root)
        for path in [path for path in found if path.endswith(".feddpa.lock")]:
            # What it held is whole, and is not made again; what was killed is the lock's removal.
            assert f"unlink {path}" == whole.done[at]
            del found[path]
        assert found.keys() == expected.keys(), what
        assert [path for path in found if found[path] != expected[path]] == [], what


@pytest.fixture
def heeds_ctrl_c() -> Iterator[None]:
    """Also where the tests run in the background of a script, and ignore SIGINT like all there."""
    before = signal.getsignal(signal.SIGINT)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("heeds_ctrl_c")
def test_a_killed_process_and_ctrl_c(data: Path, tmp_path: Path) -> None:
    """Once by SIGKILL in a run, once by Ctrl-C in a later one; then to the end."""

    def start(out: Path) -> subprocess.Popen:
        program = [sys.executable, "-m", "feddpa_jax", *command(out, data)]
        return subprocess.Popen(
            [*program, "--fed.rounds", "4"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )

    def rounds(out: Path, run: str) -> int:
        file = out / run / "metrics.jsonl"
        return len(file.read_text().splitlines()) if file.exists() else 0

    def stop(run: str, how: int) -> int:
        process = start(tmp_path / "killed")
        end = time.monotonic() + 120
        while not rounds(tmp_path / "killed", run) and process.poll() is None:
            assert time.monotonic() < end
            time.sleep(0.01)
        process.send_signal(how)
        process.communicate(timeout=120)
        return process.returncode

    assert start(tmp_path / "whole").wait(300) == 0
    assert stop("fedit/seed_0", signal.SIGKILL) == -signal.SIGKILL
    assert rounds(tmp_path / "killed", "feddpa_t/seed_1") == 0
    assert stop("feddpa_t/seed_0", signal.SIGINT) == 130
    assert start(tmp_path / "killed").wait(300) == 0

    def told(out: Path) -> dict[str, Any]:
        files = {p.relative_to(out).as_posix(): p for p in out.rglob("*.json*") if p.is_file()}
        kept = {n: p for n, p in files.items() if n.endswith(("summary.json", "instances.jsonl"))}
        lines = {n: p for n, p in files.items() if n.endswith("metrics.jsonl")}
        return {
            **{name: path.read_text() for name, path in kept.items()},
            **{
                name: [{**json.loads(line), "seconds": 0} for line in path.read_text().splitlines()]
                for name, path in lines.items()
            },
        }

    whole, killed = told(tmp_path / "whole"), told(tmp_path / "killed")
    assert len(whole) == 12
    assert killed == whole
