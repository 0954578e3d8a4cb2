"""Private adapters on disk: unchanging values, whole files, bounded memory."""

import dataclasses
import hashlib
import shutil
from pathlib import Path

import chex
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from feddpa_jax.federated.clients import ClientParts
from feddpa_jax.run.checkpoint import CLIENTS, find_damage, load
from feddpa_jax.run.client_files import ClientFiles
from feddpa_jax.types import UserError
from tests.saved import save

NAMES = ("anna", "ben", "clara")


def _files(local: ClientParts) -> ClientFiles:
    assert isinstance(local.store, ClientFiles)
    return local.store


def bank(*values: float) -> dict:
    a_CLDR = jnp.stack([jnp.full((2, 3, 1), value) for value in values])
    return {"local": {"q_proj": {"a": a_CLDR, "b": -a_CLDR}}}


def local_in(folder: Path, cached: int = 1) -> ClientParts:
    files = ClientFiles(folder, cached)
    fresh = {"local": lambda members: bank(*(c / 10 for c in members))["local"]}
    return ClientParts(NAMES, files, ("local",), fresh)


def values(local: ClientParts) -> list[float]:
    both = local.all()["local"]["q_proj"]
    assert np.array_equal(both["a"], -both["b"])
    return [round(float(x), 3) for x in both["a"][:, 1, 2, 0]]


def test_put_returns_another_value(tmp_path: Path):
    fresh = local_in(tmp_path)
    assert values(fresh) == [0.0, 0.1, 0.2]
    first = fresh.put([2, 0], bank(5.0, 6.0), round_number=0)
    second = first.put([0], bank(7.0), round_number=1)
    assert values(fresh) == [0.0, 0.1, 0.2]
    assert values(first) == [6.0, 0.1, 5.0]
    assert values(second) == [7.0, 0.1, 5.0]
    assert values(
        dataclasses.replace(fresh, store=ClientFiles(tmp_path, 1), saved=second.saved)
    ) == [*(7.0, 0.1, 5.0)]


def test_memory_is_bounded(tmp_path: Path):
    local = local_in(tmp_path, cached=2)
    for number in range(5):
        local = local.put([0, 1, 2], bank(1.0, 2.0, float(number)), number)
        assert values(local) == [1.0, 2.0, float(number)]
        assert len(_files(local)._recent) == 2


def test_the_last_used_stay_in_memory(tmp_path: Path):
    local = local_in(tmp_path, cached=2).put([0, 1], bank(1.0, 2.0), 0)
    local.take([0])
    local = local.put([2], bank(3.0), 0)
    assert list(_files(local)._recent) == [("anna", 0), ("clara", 0)]
    shutil.rmtree(tmp_path / "anna")
    assert local.take([0])["local"]["q_proj"]["a"][0, 0, 0, 0] == 1.0  # from memory
    shutil.rmtree(tmp_path / "ben")
    with pytest.raises(UserError, match=r"ben/00000.safetensors: missing or damaged"):
        local.take([1])


def test_rounds_are_told_apart_in_memory(tmp_path: Path):
    """A checkpoint may be of an earlier round than what was written last."""
    first = local_in(tmp_path, cached=4).put([0], bank(5.0), 0)
    second = first.put([0], bank(7.0), 1)
    assert [values(first)[0], values(second)[0], values(first)[0]] == [5.0, 7.0, 5.0]


def test_what_is_remembered_of_a_file(tmp_path: Path):
    local = local_in(tmp_path).put([1], bank(4.0), 7)
    assert local.saved.keys() == {"ben"}
    saved, content = local.saved["ben"], (tmp_path / "ben/00007.safetensors").read_bytes()
    assert saved == (7, len(content), hashlib.sha256(content).hexdigest())
    assert [path.name for path in (tmp_path / "ben").iterdir()] == ["00007.safetensors"]


def test_take_keeps_the_order_it_is_asked_for(tmp_path: Path):
    """Of clients that have trained and ones that have not."""
    local = local_in(tmp_path).put([0, 2], bank(5.0, 6.0), 0)
    taken = local.take([2, 1, 0])["local"]["q_proj"]["a"]
    assert [round(float(x), 3) for x in taken[:, 0, 0, 0]] == [6.0, 0.1, 5.0]


def test_damaged_file_is_named(tmp_path: Path):
    local = local_in(tmp_path).put([1, 2], bank(1.0, 2.0), 3)
    path = tmp_path / "ben" / "00003.safetensors"
    path.write_bytes(path.read_bytes()[:20])
    with pytest.raises(UserError, match=r"ben/00003.safetensors: missing or damaged"):
        local.take([1])


def test_parts_that_a_phase_does_not_replace_stay(tmp_path: Path):
    """A client's file has all of its parts, those that never trained among them."""
    fresh = {"local": lambda members: bank(*(c / 10 for c in members))["local"]}
    parts = ClientParts(NAMES, ClientFiles(tmp_path, 1), ("local", "gate", "late"), fresh)
    gate_C = {"q_proj": {"gate": np.array([[[3.0]], [[4.0]]], np.float32)}}
    first = parts.put([2, 0], {"gate": gate_C}, 0)
    assert first.take([0]).keys() == {"local", "gate"}
    assert first.take([2])["local"]["q_proj"]["a"][0, 0, 0, 0] == np.float32(0.2)
    assert first.take([0, 2])["gate"]["q_proj"]["gate"][:, 0, 0].tolist() == [4.0, 3.0]
    # Client 1 has no gate yet, so a bank with it has none.
    assert list(first.take([0, 1])) == ["local"]
    # It trains with client 0, which has one, and keeps its own.
    beside = first.put([1, 0], bank(5.0, 6.0), 1)
    assert beside.take([0])["gate"]["q_proj"]["gate"].item() == 4.0
    assert beside.take([1]).keys() == {"local"}
    second = first.put([0], bank(9.0), 1)
    again = dataclasses.replace(second, store=ClientFiles(tmp_path, 1)).take([0])
    assert again["local"]["q_proj"]["a"][0, 0, 0, 0] == 9.0
    assert again["gate"]["q_proj"]["gate"].item() == 4.0


def test_fresh_parts_are_made_in_lots_of_few_sizes(tmp_path: Path):
    """Each size is a program of its own; what is made is of the clients that were asked for."""
    sizes = []

    def make(members):
        sizes.append(len(members))
        return bank(*map(float, members))["local"]

    names = tuple(f"client_{c}" for c in range(140))
    parts = ClientParts(names, ClientFiles(tmp_path, 1), ("local",), {"local": make})
    for count in (1, 3, 5, 6, 140):
        members = list(range(count))[::-1]
        a_CLDR = parts.take(members)["local"]["q_proj"]["a"]
        assert a_CLDR[:, 0, 0, 0].tolist() == members
    assert sizes == [1, 4, 8, 8, 64, 64, 16]


def test_files_of_earlier_versions_hold_the_local_adapter(tmp_path: Path):
    """They name no part."""
    local = local_in(tmp_path).put([1], bank(4.0), 7)
    file = tmp_path / "ben/00007.safetensors"
    tensors = {name.removeprefix("local."): x for name, x in load_file(file).items()}
    save_file(tensors, file)
    again = dataclasses.replace(local, store=ClientFiles(tmp_path, 1))
    chex.assert_trees_all_equal(again.take([1]), local.take([1]))


def test_a_target_that_cannot_be_written(tmp_path: Path):
    (tmp_path / "ben").write_text("in the way")
    with pytest.raises(UserError, match=r"cannot be written .*make room"):
        local_in(tmp_path).put([1], bank(1.0), 0)


def test_checkpoints_are_whole_with_their_clients_files(tmp_path: Path):
    """Files go when the last checkpoint that needs them goes, and damage in one is seen."""
    local = local_in(tmp_path / CLIENTS)
    for number, members in enumerate([[0, 1], [1], [1], [1, 2]]):
        local = local.put(members, bank(*[float(number)] * len(members)), number)
        save(tmp_path, number, {}, {"validation_loss": 9.0 - number}, keep=2, clients=local.saved)
    files = sorted(
        str(p.relative_to(tmp_path / CLIENTS)) for p in (tmp_path / CLIENTS).rglob("*.s*")
    )
    assert files == [
        *("anna/00000.safetensors", "ben/00002.safetensors", "ben/00003.safetensors"),
        "clara/00003.safetensors",
    ]
    found = load(tmp_path / "00002", {})
    assert values(dataclasses.replace(local, saved=found.clients)) == [0.0, 2.0, 0.2]
    assert find_damage(tmp_path / "00003") == ""
    file = tmp_path / CLIENTS / "clara/00003.safetensors"
    content = file.read_bytes()
    # A flipped bit leaves the size, a lost byte does not; both are seen, in the checkpoint that
    # is whole with the file alone.
    for damaged in (content[:-1] + bytes([content[-1] ^ 1]), content[:-1], content + b"0"):
        file.write_bytes(damaged)
        assert find_damage(tmp_path / "00003") == "clients/clara/00003.safetensors has changed"
        assert find_damage(tmp_path / "00002") == ""
    file.unlink()
    assert find_damage(tmp_path / "00003") == "clients/clara/00003.safetensors is missing"
    assert find_damage(tmp_path / "00002") == ""
    chex.assert_trees_all_equal(found.state(), {})


def test_a_client_that_cannot_be_written_is_named(tmp_path: Path):
    """Clients are written several at a time; a fault is told, and the next attempt is whole."""
    files = ClientFiles(tmp_path, cached=8)
    parts = {name: bank(1.0) for name in NAMES}
    (tmp_path / "ben").write_text("in the way")
    with pytest.raises(UserError, match=r"ben/00000\.safetensors: cannot be written"):
        files.write_all(0, parts)
    (tmp_path / "ben").unlink()
    saved = files.write_all(0, parts)
    assert list(saved) == list(NAMES)
    for name, own in saved.items():
        content = files.path(name, 0).read_bytes()
        assert own == (0, len(content), hashlib.sha256(content).hexdigest())
