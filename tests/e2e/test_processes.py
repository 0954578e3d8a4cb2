"""Two real processes on loopback train what one trains, and one of them writes."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from safetensors.numpy import load_file

from feddpa_jax.cli.program import main
from feddpa_jax.cli.supervise import LOST
from feddpa_jax.config import load_config
from feddpa_jax.devices.processes import _pack, _unpack, from_first
from feddpa_jax.run.checkpoint import rounds_saved
from feddpa_jax.run.round_state import read
from feddpa_jax.types import UserError

ROOT = Path(__file__).parents[2]
RUN = [
    *("--model.path", "tiny", "--model.dtype", "float32", "--data.max_length", "256"),
    *("--data.max_train", "4", "--data.max_test", "1", "--lora.rank", "2"),
    *("--data.validation", "1"),
    *("--fed.batch_size", "2", "--fed.micro_batch_size", "null", "--fed.local_epochs", "1"),
    *("--fed.rounds", "2", "--fed.participation", "0.5", "--fed.learning_rate", "0.001"),
]


def start(run_dir: Path, devices: int, *more: str, cwd: Path = ROOT) -> subprocess.Popen[str]:
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(devices)}
    environment["PYTHONPATH"] = str(ROOT)
    command = [sys.executable, "-m", "feddpa_jax", "train", "--run-dir", str(run_dir)]
    return subprocess.Popen(
        [*command, *RUN, *more],
        cwd=cwd,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def start_two(tmp_path: Path, *more: str, devices: int = 2) -> list[subprocess.Popen[str]]:
    where = f"127.0.0.1:{free_port()}"
    return [
        start(
            tmp_path / name,
            devices,
            *("--coordinator", where, "--processes", "2", "--process", str(process)),
            *more,
        )
        for process, name in enumerate(("first", "second"))
    ]


def start_apart(tmp_path: Path, *more: str, devices: int = 2) -> list[subprocess.Popen[str]]:
    """Two processes on machines that share no disk: of one name, a folder is another in each."""
    where = f"127.0.0.1:{free_port()}"
    for name in ("first", "second"):
        (tmp_path / name).mkdir(exist_ok=True)
    return [
        start(
            Path("/proc/self/cwd/run"),
            devices,
            *("--coordinator", where, "--processes", "2", "--process", str(process)),
            *more,
            cwd=tmp_path / name,
        )
        for process, name in enumerate(("first", "second"))
    ]


def finish(*processes: subprocess.Popen[str]) -> list[str]:
    said = [process.communicate(timeout=120) for process in processes]
    assert [process.returncode for process in processes] == [0] * len(processes), said
    return [out for out, _ in said]


def results(run: Path) -> tuple[dict[str, np.ndarray], list[dict]]:
    """Everybody's last adapters, and the losses of all rounds."""
    folder = run / "checkpoints"
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    record = json.loads((folder / "00001" / "record.json").read_text())
    adapters = {
        f"{name}.{key}": array
        for name, (number, *_) in record["clients_saved"].items()
        for key, array in load_file(folder / "clients" / name / f"{number:05d}.safetensors").items()
    }
    state = flatten_dict(read(folder / "00001"), sep=".")
    adapters |= {name: np.asarray(array) for name, array in state.items()}
    held_out = [{"held out": {"all": {"loss": line["validation_loss"]}}} for line in lines]
    return adapters, [line["phases"] | own for line, own in zip(lines, held_out, strict=True)]


def same(one: Path, other: Path) -> None:
    (a, losses_a), (b, losses_b) = results(one), results(other)
    assert a.keys() == b.keys() and any(np.abs(array).max() > 0 for array in a.values())
    for name in a:
        np.testing.assert_allclose(a[name], b[name], atol=1e-5, rtol=0, err_msg=name)
    assert json.dumps(losses_a)[:20] == json.dumps(losses_b)[:20]
    for phases_a, phases_b in zip(losses_a, losses_b, strict=True):
        assert phases_a.keys() == phases_b.keys()
        for phase in phases_a:
            assert phases_a[phase].keys() == phases_b[phase].keys()
            for name, curve in phases_a[phase].items():
                assert curve == pytest.approx(phases_b[phase][name], abs=1e-5)


@pytest.fixture(scope="module")
def single(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run in one process with as many devices."""
    run = tmp_path_factory.mktemp("single") / "run"
    finish(start(run, 4, "--no-eval"))
    return run


def test_two_processes_train_what_one_trains(tmp_path: Path, single: Path):
    first, second = finish(*start_two(tmp_path))
    same(single, tmp_path / "first")
    assert not (tmp_path / "second").exists() and second == ""
    assert f"feddpa eval --run-dir {tmp_path / 'first'}" in first
    assert load_config(tmp_path / "first" / "config.yaml").fed.rounds == 2


def test_killed_and_resumed_with_a_base_across_processes(tmp_path: Path, single: Path):
    """The processes share no disk: the others restore from what the first sends them."""
    split = ("--mesh.clients", "1", "--mesh.model", "2")
    both = start_apart(tmp_path, *split, devices=1)
    folder = tmp_path / "first" / "run" / "checkpoints"
    until = time.monotonic() + 100
    while not rounds_saved(folder) and time.monotonic() < until:
        time.sleep(0.05)
    for process in both:
        process.send_signal(signal.SIGKILL)
        process.communicate()
    assert rounds_saved(folder)
    first, _ = finish(*start_apart(tmp_path, *split, devices=1))
    assert "resuming after" in first
    same(single, tmp_path / "first" / "run")
    assert list((tmp_path / "second").iterdir()) == []


def test_processes_with_other_settings_are_refused(tmp_path: Path):
    where = f"127.0.0.1:{free_port()}"
    both = [
        start(
            tmp_path / str(process),
            1,
            *("--coordinator", where, "--processes", "2", "--process", str(process)),
            *("--seed", str(process)),
        )
        for process in (0, 1)
    ]
    errors = [process.communicate(timeout=60)[1] for process in both]
    assert [process.returncode for process in both] == [2, 2], errors
    assert all("its configuration is not that of process 0" in error for error in errors), errors


def test_what_the_first_cannot_do_stops_all(tmp_path: Path):
    (tmp_path / "first").mkdir()
    (tmp_path / "first" / "letter.txt").write_text("mine")
    both = start_two(tmp_path)
    errors = [process.communicate(timeout=60)[1] for process in both]
    assert [process.returncode for process in both] == [2, 2]
    for error in errors:
        assert "holds something else than a run" in error and "Traceback" not in error


@pytest.mark.parametrize("victim", [0, 1])
def test_the_others_end_with_one_line_when_one_is_killed(tmp_path: Path, victim: int):
    more = ("--fed.rounds", "200", "--heartbeat", "20")
    both = start_two(tmp_path, *more, devices=1)
    folder = tmp_path / "first" / "checkpoints"
    until = time.monotonic() + 100
    while not rounds_saved(folder) and time.monotonic() < until:
        time.sleep(0.05)
    assert rounds_saved(folder)
    both[victim].kill()
    begun = time.monotonic()
    out, error = both[1 - victim].communicate(timeout=100)
    assert time.monotonic() - begun < 40
    assert both[1 - victim].returncode == 2
    assert said(error) == [f"feddpa: error: {LOST}"]
    assert victim == 0 or "24 training examples" in out
    both[victim].communicate()


def said(error: str) -> list[str]:
    """Lines of standard error, without those by which Gloo says whom it is connected to."""
    return [line for line in error.splitlines() if line and "[Gloo]" not in line]


def test_the_first_alone(tmp_path: Path):
    where = ("--coordinator", f"127.0.0.1:{free_port()}", "--processes", "2", "--process", "0")
    alone = start(tmp_path / "run", 1, *where, "--wait", "1")
    out, error = alone.communicate(timeout=60)
    assert (alone.returncode, out) == (2, "") and not (tmp_path / "run").exists()
    assert error.startswith("feddpa: error: --coordinator: 1 of 2 processes came within 1 s")
    assert len(said(error)) == 1


def test_messages_between_processes():
    value = {"a": [1, None, "x"], "b": ({"c": np.arange(3, dtype=np.int8)}, np.ones((2, 1)))}
    got = _unpack(_pack(value))
    assert got["a"] == [1, None, "x"] and got["b"][0]["c"].tolist() == [0, 1, 2]
    assert got["b"][0]["c"].dtype == np.int8 and got["b"][1].shape == (2, 1)
    # A client's number, as FedALT's clients have one, is no array of one.
    assert _unpack(_pack([np.array(3.0, np.float32)]))[0].shape == ()
    assert from_first(lambda: 7) == 7
    with pytest.raises(UserError, match="no room"):
        from_first(lambda: (_ for _ in ()).throw(UserError("no room")))


def test_half_an_address(capsys, tmp_path: Path):
    assert main(["train", "--run-dir", str(tmp_path), "--processes", "2"]) == 2
    assert "--coordinator, --process: missing" in capsys.readouterr().err


@pytest.mark.parametrize("host", ["a..b", "x" * 300])
def test_hosts_that_can_have_no_address(capsys, tmp_path: Path, host: str):
    place = ["--coordinator", f"{host}:1", "--processes", "2", "--process", "1"]
    assert main(["train", "--run-dir", str(tmp_path), *place]) == 2
    assert f"{host}:1' is not HOST:PORT" in capsys.readouterr().err
