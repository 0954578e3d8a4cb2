"""Checkpoints in a bucket: nothing is renamed, and the manifest says what is there."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from feddpa_jax.files.bucket import folder_at, in_bucket
from feddpa_jax.run.checkpoint import CLIENTS, find_damage, latest, rounds_saved
from feddpa_jax.run.client_files import ClientFiles
from feddpa_jax.types import UserError
from tests import fake_bucket
from tests.saved import save


@pytest.fixture(scope="module")
def objects() -> Iterator[dict[str, bytes]]:
    with pytest.MonkeyPatch.context() as patch, fake_bucket.serve(patch) as found:
        yield found


@pytest.fixture
def folder(objects: dict[str, bytes]) -> Path:
    objects.clear()
    fake_bucket.WATCH.clear()
    return folder_at("gs://mine/runs/one/checkpoints")


def state(value: float) -> dict:
    return {"global_": {"a": np.full((3, 4), value, np.float32)}}


def written(folder: Path, number: int, files: ClientFiles) -> None:
    own = {
        "anna": files.write("anna", number, {"local": {"q": {"a": np.full(2, number, np.float32)}}})
    }
    save(folder, number, state(number), {"validation_loss": 3.0 - number}, keep=1, clients=own)


def test_saved_pruned_and_read(folder: Path, objects: dict[str, bytes]) -> None:
    files = ClientFiles(folder / CLIENTS, cached=1)
    for number in range(3):
        written(folder, number, files)
    assert rounds_saved(folder) == [2]
    assert {name.split("/")[4] for name in objects} == {"00002", "clients"}
    assert [name for name in objects if "clients" in name] == [
        "mine/runs/one/checkpoints/clients/anna/00002.safetensors"
    ]
    found = latest(folder, {}, warn=pytest.fail)
    assert found is not None and found.round_number == 2
    assert found.state()["global_"]["a"].tobytes() == state(2)["global_"]["a"].tobytes()
    fresh = ClientFiles(folder / CLIENTS, cached=1)
    assert fresh.read("anna", found.clients["anna"])["local"]["q"]["a"].tolist() == [2.0, 2.0]


def test_damage_of_any_object_is_seen(folder: Path, objects: dict[str, bytes]) -> None:
    written(folder, 0, ClientFiles(folder / CLIENTS, cached=1))
    assert find_damage(folder / "00000") == ""
    names = [name for name in objects if not name.endswith("manifest.json")]
    assert len(names) > 8
    for name in names:
        content = objects.pop(name)
        assert "is missing" in find_damage(folder / "00000"), name
        if content:
            objects[name] = content[:-1] + bytes([content[-1] ^ 1])
            assert "has changed" in find_damage(folder / "00000"), name
        objects[name] = content


class Killed(BaseException):
    """The end of the process."""


def test_killed_at_any_write(folder: Path, objects: dict[str, bytes]) -> None:
    """What is there is whole, and the next save goes on from it."""
    files = ClientFiles(folder / CLIENTS, cached=1)
    written(folder, 0, files)
    begun = dict(objects)
    done: list[str] = []
    fake_bucket.WATCH.append(lambda what, name: done.append(name))
    written(folder, 1, files)
    after = {name: content for name, content in objects.items() if "00001/_CHECK" not in name}
    manifest = next(i for i, name in enumerate(done) if name.endswith("00001/manifest.json"))
    assert manifest > 8
    for at in sorted({0, 1, 4, manifest - 1, manifest, manifest + 1, len(done) - 1}):
        objects.clear()
        objects.update(begun)
        count = 0

        def die(what: str, name: str, at: int = at) -> None:
            nonlocal count
            count += 1
            if count > at:
                raise OSError(5, "killed")

        fake_bucket.WATCH[:] = [die]
        with pytest.raises(UserError):
            written(folder, 1, files)
        fake_bucket.WATCH.clear()
        found = latest(folder, {}, warn=pytest.fail)
        assert found is not None
        assert found.round_number == (1 if at > manifest else 0), at
        assert found.state()["global_"]["a"][0, 0] == found.round_number
        written(folder, 1, files)
        assert after.keys() <= objects.keys() and rounds_saved(folder) == [1]


def test_what_is_a_folder() -> None:
    assert folder_at("runs/a") == Path("runs/a")
    assert not in_bucket(folder_at("runs/a")) and in_bucket(folder_at("gs://a/b"))
    with pytest.raises(UserError, match="s3://a: is neither a folder nor in a bucket"):
        folder_at("s3://a")
