"""Saves beside the next round: what they keep, wait for, and leave alone."""

import json
import threading
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save as to_safetensors

from feddpa_jax.run import round_state, saver
from feddpa_jax.run.checkpoint import CLIENTS, find_damage, latest, rounds_saved, sums_of, tidy
from feddpa_jax.run.client_files import ClientFiles
from feddpa_jax.run.saver import Saver
from feddpa_jax.types import UserError
from tests.saved import save

DOCS = Path(__file__).parents[2] / "docs" / "checkpoints.md"


def adapter(value: float) -> dict:
    return {"q_proj": {"a": np.full((30, 576, 8), value, np.float32), "b": np.ones((30, 8, 2))}}


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Saves end only once this is set."""
    event = threading.Event()
    wait = round_state.Save.wait

    def late(self: round_state.Save) -> None:
        assert event.wait(30)
        wait(self)

    monkeypatch.setattr(round_state.Save, "wait", late)
    return event


def test_the_page_opens_a_checkpoint_with_orbax_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    save(tmp_path / "runs/quickstart/checkpoints", 2, {"global": adapter(3.0)}, {}, keep=1)
    monkeypatch.chdir(tmp_path)
    code = DOCS.read_text().split("```python\n")[1].split("```")[0]
    assert "feddpa" not in code
    names: dict = {}
    exec(code, names)
    assert capsys.readouterr().out == "2\n(30, 576, 8)\n"
    assert (
        names["state"]["global"]["q_proj"]["a"].tobytes() == adapter(3.0)["q_proj"]["a"].tobytes()
    )


def test_a_method_that_shares_nothing_has_checkpoints_too(tmp_path: Path) -> None:
    save(tmp_path, 0, {}, {}, keep=1)
    found = latest(tmp_path, {})
    assert found is not None and found.state() == {}


def test_the_next_round_begins_while_a_checkpoint_is_written(
    tmp_path: Path, held: threading.Event
) -> None:
    x = jnp.arange(4.0)
    y = np.arange(4.0)
    with Saver(tmp_path, keep=1) as one:
        one.save(0, {"x": x, "y": y}, {})
        x.delete()  # As a donated buffer is.
        y += 1
        assert rounds_saved(tmp_path) == []
        held.set()
    found = latest(tmp_path, {})
    assert found is not None
    assert {name: array.tolist() for name, array in found.state().items()} == {
        "x": [0, 1, 2, 3],
        "y": [0, 1, 2, 3],
    }


def test_one_at_a_time(tmp_path: Path, held: threading.Event) -> None:
    with Saver(tmp_path, keep=2) as one:
        one.save(0, {"x": np.zeros(2)}, {})
        second = threading.Thread(target=one.save, args=(1, {"x": np.ones(2)}, {}))
        second.start()
        second.join(0.2)
        assert second.is_alive()
        held.set()
        second.join(30)
        assert rounds_saved(tmp_path)[0] == 0
    assert rounds_saved(tmp_path) == [0, 1]


def broken(folder: Path) -> None:
    raise OSError(5, "Input/output error")


def test_a_failure_is_told_by_the_next_save_and_at_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(saver, "sync_tree", broken)
    told = r"round 0 could not be written \(Input/output error\); there is no earlier one"
    one = Saver(tmp_path, keep=1)
    one.save(0, {"x": np.ones(2)}, {})
    with pytest.raises(UserError, match=told):
        one.save(1, {"x": np.ones(2)}, {})
    with pytest.raises(UserError, match=told), Saver(tmp_path, keep=1) as other:
        other.save(0, {"x": np.ones(2)}, {})
    # What else went wrong would name this round as the last that is kept.
    with pytest.raises(UserError, match=told), Saver(tmp_path, keep=1) as other:
        other.save(0, {"x": np.ones(2)}, {})
        raise UserError("round 1: the loss is not finite; the checkpoint of round 0 is kept")
    assert list(tmp_path.iterdir()) == []


def test_an_interrupt_waits(tmp_path: Path, held: threading.Event) -> None:
    with pytest.raises(KeyboardInterrupt), Saver(tmp_path, keep=1) as one:
        one.save(0, {"x": np.ones(2)}, {})
        threading.Timer(0.2, held.set).start()
        raise KeyboardInterrupt
    assert rounds_saved(tmp_path) == [0]


def test_what_the_next_round_writes_for_clients_stays(
    tmp_path: Path, held: threading.Event
) -> None:
    files = ClientFiles(tmp_path / CLIENTS, cached=1)
    own = {"anna": files.write("anna", 0, {})}
    files.write("ben", 0, {})  # No checkpoint names it: the next start removes it.
    half = tmp_path / CLIENTS / "anna" / ".00001.safetensors.writing"
    with Saver(tmp_path, keep=1) as one:
        one.save(0, {"x": np.ones(2)}, {}, clients=own)
        files.write("anna", 1, {})
        half.write_text("half")
        held.set()
    left = sorted(str(p.relative_to(tmp_path / CLIENTS)) for p in tmp_path.rglob("*.safetensors*"))
    assert left == [
        *("anna/.00001.safetensors.writing", "anna/00000.safetensors", "anna/00001.safetensors"),
        "ben/00000.safetensors",
    ]
    tidy(tmp_path)
    left = sorted(str(p.relative_to(tmp_path / CLIENTS)) for p in tmp_path.rglob("*.safetensors*"))
    assert left == ["anna/00000.safetensors"]
    assert find_damage(tmp_path / "00000") == ""


def test_checkpoints_of_earlier_versions_are_read(tmp_path: Path) -> None:
    """They hold one safetensors file in place of what Orbax writes."""
    save(tmp_path, 1, {"global_": adapter(2.0)}, {"loss": 1.0}, keep=1)
    place = tmp_path / "00001"
    record = json.loads((place / "record.json").read_text())
    for path in sorted(place.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    (place / "record.json").write_text(json.dumps(record))
    flat = {f"global_/q_proj/{part}": x for part, x in adapter(2.0)["q_proj"].items()}
    (place / "state.safetensors").write_bytes(to_safetensors(flat))
    (place / "manifest.json").write_text(json.dumps({"files": sums_of(place)}))
    found = latest(tmp_path, {}, warn=pytest.fail)
    assert found is not None and found.record["loss"] == 1.0
    state = found.state()["global_"]["q_proj"]
    assert {name: x.tobytes() for name, x in state.items()} == {
        name: x.tobytes() for name, x in adapter(2.0)["q_proj"].items()
    }
    (place / "state.safetensors").write_bytes(b"x" * (place / "state.safetensors").stat().st_size)
    assert find_damage(place) == "state.safetensors has changed"


def test_a_state_that_was_sent_is_the_same(tmp_path: Path) -> None:
    save(tmp_path, 0, {"global_": adapter(4.0)}, {}, keep=1)
    state = round_state.receive(round_state.send(tmp_path / "00000"))
    assert state["global_"]["q_proj"]["a"].tobytes() == adapter(4.0)["q_proj"]["a"].tobytes()


def test_files_that_cannot_be_opened_are_one_line(tmp_path: Path) -> None:
    save(tmp_path, 0, {"global_": adapter(4.0)}, {}, keep=1)
    (tmp_path / "00000" / "state" / "_METADATA").write_text("{")
    with pytest.raises(UserError, match="00000: cannot be read") as caught:
        round_state.read(tmp_path / "00000")
    assert "\n" not in str(caught.value)
