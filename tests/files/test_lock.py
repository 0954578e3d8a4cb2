"""Locks: one holder, who is named, and who leaves nothing in the way."""

import errno
import fcntl
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from feddpa_jax.files.disk import lock_of
from feddpa_jax.files.lock import hold, holder_of, refuse_if_held
from feddpa_jax.types import UserError

HOLDER = """
import subprocess, sys, time
from pathlib import Path
from feddpa_jax.files.lock import hold

sys.argv[1:1] = ["train"]
with hold(Path(sys.argv[2]), "", print):
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    print(child.pid, flush=True)
    time.sleep(60)
"""


def take(path: Path) -> None:
    with hold(path, "wait for it", pytest.fail):
        pass


def test_one_at_a_time_and_nothing_stays(tmp_path: Path) -> None:
    path = tmp_path / "new" / "run"
    with hold(path, "", pytest.fail):
        assert lock_of(path).is_file()
        with pytest.raises(UserError, match=rf"process {os.getpid()} on .*; wait for it"):
            take(path)
        take(tmp_path / "new" / "other")
    assert holder_of(path) == ""
    assert list(tmp_path.iterdir()) == []
    take(path)


def test_what_was_made_meanwhile_stays(tmp_path: Path) -> None:
    with hold(tmp_path / "new" / "run", "", pytest.fail):
        (tmp_path / "new" / "run").mkdir()
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["run"]


def test_another_process_is_named_and_its_death_releases(tmp_path: Path) -> None:
    path = tmp_path / "run"
    command = [sys.executable, "-c", HOLDER, str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        child = int(process.stdout.readline())
        with pytest.raises(UserError) as caught:
            refuse_if_held(path, "wait for it, or use another --run-dir")
        day = time.strftime("%Y-%m-")
        assert str(caught.value).startswith(
            f"{path}: process {process.pid} on {socket.gethostname()} has been at work there "
            f"since {day}"
        )
        assert str(caught.value).endswith("(feddpa train); wait for it, or use another --run-dir")
        with pytest.raises(UserError, match=f"process {process.pid} on"):
            take(path)
        process.send_signal(signal.SIGKILL)
        process.wait()
    # The child lives on, and holds nothing; the file that is left is no obstacle.
    os.kill(child, 0)
    assert lock_of(path).is_file()
    take(path)
    os.kill(child, signal.SIGKILL)
    assert not lock_of(path).exists()


def test_a_file_that_its_holder_has_just_removed_is_no_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, flock = tmp_path / "run", fcntl.flock
    times = []

    def late(descriptor: int, how: int) -> None:
        if not times:
            lock_of(path).unlink()
        times.append(how)
        flock(descriptor, how)

    monkeypatch.setattr(fcntl, "flock", late)
    with hold(path, "", pytest.fail):
        assert len(times) == 2
        assert lock_of(path).is_file()


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS])
def test_without_locks_there_is_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def none(descriptor: int, how: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", none)
    lines: list[str] = []
    for _ in range(2):
        with hold(tmp_path / "run", "", lines.append):
            pass
    assert len(lines) == 2
    assert "no locks" in lines[0]
    assert holder_of(tmp_path / "run") == ""


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        take(tmp_path / "file" / "run")


def test_a_lock_file_of_another_user_s_is_no_obstacle_and_is_a_lock(tmp_path: Path) -> None:
    """As in a shared folder whose files can only be removed by their owners."""
    path = tmp_path / "run"
    lock_of(path).write_text("left")
    lock_of(path).chmod(0o444)
    # Whoever may do anything, as in a container, is somebody else meanwhile.
    tmp_path.chmod(0o555)
    me = os.geteuid()
    closed = [parent for parent in tmp_path.parents if not parent.stat().st_mode & 0o001]
    folders = [tmp_path, *closed]
    modes = [folder.stat().st_mode for folder in folders]
    try:
        if me == 0:
            for folder in folders[1:]:
                folder.chmod(0o755)
            os.seteuid(65534)
        with hold(path, "", pytest.fail), pytest.raises(UserError, match="at work there; wait"):
            take(path)
        take(path)
        with pytest.raises(UserError, match="cannot be written"):
            take(tmp_path / "other")
    finally:
        os.seteuid(me)
        for folder, mode in zip(folders, modes, strict=True):
            folder.chmod(mode)
        tmp_path.chmod(0o755)
    assert lock_of(path).read_text() == "left"


def test_who_only_looks_who_holds_it_keeps_nobody_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "run"
    lock_of(path).write_text('{"pid": 1, "host": "gone", "since": "long ago", "command": "train"}')
    looks = os.open(lock_of(path), os.O_RDONLY)
    fcntl.flock(looks, fcntl.LOCK_SH)
    monkeypatch.setattr(time, "sleep", lambda seconds: os.close(looks))
    take(path)


@pytest.mark.parametrize("content", [b"", b"[" * 4000, b"[1]", b"\xff", b'{"pid": 1}'])
def test_a_lock_that_does_not_say_whose_it_is(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "run"
    with hold(path, "", pytest.fail):
        lock_of(path).write_bytes(content)
        with pytest.raises(UserError, match=r"run: another process is at work there; wait for it"):
            take(path)
