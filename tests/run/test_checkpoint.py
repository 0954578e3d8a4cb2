"""Checkpoints: exact bits, damage refused with its reason, and kills at any moment survived."""

import os
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from feddpa_jax.run import checkpoint
from feddpa_jax.run.checkpoint import (
    at_step,
    best_round,
    latest,
    rounds_saved,
    tidy,
)
from feddpa_jax.types import UserError
from tests.run.small_checkpoints import IDENTITY, same_bits, tree
from tests.saved import save


def test_round_trip_keeps_every_bit(two_rounds: Path) -> None:
    found = latest(two_rounds, IDENTITY)
    assert found is not None
    assert found.round_number == 1
    assert same_bits(found.state(), tree(1))
    assert not same_bits(found.state(), tree(0))
    assert found.record["validation_loss"] == 0.25
    assert found.record["shapes"]["['local_C']['q_proj']['a']"] == ["bfloat16", 3, 100]


def test_sharded_arrays_are_saved_whole(tmp_path: Path) -> None:
    mesh = jax.make_mesh((8,), ("clients",), axis_types=(jax.sharding.AxisType.Auto,))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("clients"))
    whole = np.arange(16, dtype=np.float32).reshape(8, 2)
    save(tmp_path, 0, {"local_C": jax.device_put(whole, sharding)}, {}, keep=1)
    found = latest(tmp_path, {})
    assert found is not None
    assert same_bits(found.state(), {"local_C": whole})


def test_nothing_saved_is_none(tmp_path: Path) -> None:
    assert latest(tmp_path / "absent", IDENTITY) is None
    (tmp_path / ".writing-00004").mkdir()
    assert latest(tmp_path, IDENTITY) is None


def test_no_thread_and_no_partial_folder_stay(tmp_path: Path) -> None:
    before = set(threading.enumerate())
    (tmp_path / ".writing-00007" / "state").mkdir(parents=True)
    save(tmp_path, 3, tree(), IDENTITY, keep=1)
    assert os.listdir(tmp_path) == ["00003"]
    for thread in set(threading.enumerate()) - before:
        thread.join(10)  # Idle workers, told to go as the last thing.
        assert not thread.is_alive()


def test_the_last_ones_are_kept(tmp_path: Path) -> None:
    for number in range(4):
        save(tmp_path, number, {"x": np.ones(2)}, {}, keep=2)
    assert sorted(os.listdir(tmp_path)) == ["00002", "00003"]


def test_the_one_of_the_lowest_loss_is_kept_too(tmp_path: Path) -> None:
    for number, loss in enumerate([3.0, 1.0, float("nan"), 2.0, 1.5, 4.0]):
        save(tmp_path, number, tree(number), {**IDENTITY, "validation_loss": loss}, keep=1)
    assert sorted(os.listdir(tmp_path)) == ["00001", "00005"]
    assert best_round(tmp_path, rounds_saved(tmp_path)) == 1
    assert same_bits(at_step(tmp_path, "best", IDENTITY).state(), tree(1))
    assert at_step(tmp_path, "5", IDENTITY).round_number == 5
    for step in ("2", "7", "first", "-1", "9" * 5000):
        with pytest.raises(UserError, match=rf"no checkpoint '{step}'.*there are 1, 5 \(best: 1\)"):
            at_step(tmp_path, step, IDENTITY)
    flip(tmp_path / "00001" / "manifest.json")
    with pytest.raises(UserError, match="00001 is damaged"):
        at_step(tmp_path, "best", IDENTITY)


def test_of_equal_losses_the_later_round_is_the_best(tmp_path: Path) -> None:
    for number, loss in enumerate([2.0, 1.0, 3.0, 1.0, float("inf"), 2.0]):
        save(tmp_path, number, tree(number), {**IDENTITY, "validation_loss": loss}, keep=2)
        if number == 1:
            assert best_round(tmp_path, rounds_saved(tmp_path)) == 1
    assert best_round(tmp_path, rounds_saved(tmp_path)) == 3
    assert sorted(os.listdir(tmp_path)) == ["00003", "00004", "00005"]
    assert best_round(tmp_path, [4]) is None
    assert rounds_saved(tmp_path) == [3, 4, 5]


def test_rounds_are_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    """Whatever order the file system lists them in, and whatever else lies there."""
    for number in (100000, 7, 99999, 12):
        (tmp_path / f"{number:05d}").mkdir()
    (tmp_path / "notes").mkdir()
    (tmp_path / "00013").write_text("a file")
    assert rounds_saved(tmp_path) == [7, 12, 99999, 100000]


def cut(path: Path) -> None:
    """Takes the second half away."""
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path: Path) -> None:
    """Changes one bit in the middle."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def files_of(place: Path) -> list[str]:
    return sorted(str(path.relative_to(place)) for path in place.rglob("*") if path.is_file())


@pytest.mark.parametrize(
    ("damage", "reason"),
    [(Path.unlink, "missing"), (cut, "bytes, not"), (flip, "changed")],
    ids=["missing", "cut", "changed"],
)
def test_any_damaged_file_falls_back(
    folder: Path, damage: Callable[[Path], None], reason: str
) -> None:
    place = folder / "00001"
    names = files_of(place)
    # Ours, four of Orbax itself, and two of each array and of the round's number.
    assert len(names) == 2 + 4 + 2 * 5 and {"state/_METADATA", "orbax.checkpoint"} < set(names)
    for name in names:
        if (place / name).stat().st_size == 0 and damage is not Path.unlink:
            continue
        content = (place / name).read_bytes()
        damage(place / name)
        lines: list[str] = []
        found = latest(folder, IDENTITY, warn=lines.append)
        assert found is not None, name
        assert found.round_number == 0, name
        assert same_bits(found.state(), tree(0)), name
        (line,) = lines
        assert str(place) in line
        assert "\n" not in line
        if name != "manifest.json":
            assert name in line
            assert reason in line
        (place / name).write_bytes(content)
    found = latest(folder, IDENTITY, warn=pytest.fail)
    assert found is not None
    assert found.round_number == 1


@pytest.mark.parametrize(
    "content",
    [
        *("", "{", "[]", "{}", '{"files": 3}', '{"files": {"record.json": 1}}', '{"files": {}}'),
        *("\x00", "[" * 200_000, '{"clients_saved": {"anna": 3}}'),
    ],
    ids=lambda content: content[:20],
)
@pytest.mark.parametrize("name", ["manifest.json", "record.json"])
def test_files_that_say_nothing_are_damage(folder: Path, content: str, name: str) -> None:
    (folder / "00001" / name).write_text(content)
    tidy(folder)
    assert best_round(folder, [1]) == (1 if name == "manifest.json" else None)
    lines: list[str] = []
    found = latest(folder, IDENTITY, warn=lines.append)
    assert found is not None
    assert found.round_number == 0
    assert name in lines[0]


def test_all_damaged_is_an_error(folder: Path) -> None:
    for number in (0, 1):
        cut(folder / f"{number:05d}/record.json")
    with pytest.raises(UserError, match=r"every checkpoint is damaged \(record.json has"):
        latest(folder, IDENTITY)


def test_saving_over_damaged_rounds_never_removes_the_new_one(folder: Path) -> None:
    save(folder, 2, tree(2), IDENTITY, keep=3)
    for number in (1, 2):
        cut(folder / f"{number:05d}/record.json")
    save(folder, 1, tree(11), IDENTITY, keep=1)  # Round 0 was good; round 1 is played again.
    found = latest(folder, IDENTITY)
    assert found is not None
    assert found.round_number == 1
    assert same_bits(found.state(), tree(11))


@pytest.mark.parametrize(
    ("key", "value", "both"),
    [
        ("rank", 4, ("its rank is 8", "this run's is 4")),
        ("alpha", 8.0, ("its alpha is 16.0", "this run's is 8.0")),
        ("targets", ("q_proj",), ('its targets is ["q_proj", "v_proj"]', 'is ["q_proj"]')),
        ("clients", ["anna", "carl"], ('"ben"', '"carl"')),
        ("base", "f00d", ("its base is null", 'this run\'s is "f00d"')),
    ],
)
def test_what_does_not_fit_is_refused(
    folder: Path, key: str, value: Any, both: tuple[str, str]
) -> None:
    expected = {**IDENTITY, key: value}
    # An older checkpoint that would fit: it must not be taken silently.
    shutil.rmtree(folder / "00000")
    save(folder / "aside", 0, tree(0), expected, keep=1)
    (folder / "aside/00000").rename(folder / "00000")
    with pytest.raises(UserError) as caught:
        latest(folder, expected)
    assert all(text in str(caught.value) for text in both)
    assert str(folder / "00001") in str(caught.value)


def test_of_long_values_the_difference_is_named(tmp_path: Path) -> None:
    clients = [f"client-{number}" for number in range(100)]
    save(tmp_path, 0, tree(), {"clients": clients}, keep=1)
    with pytest.raises(UserError) as caught:
        latest(tmp_path, {"clients": [*clients[:70], "other", *clients[71:]]})
    assert 'its clients[70] is "client-70", this run\'s is "other"' in str(caught.value)
    shapes = checkpoint.leaf_shapes({**tree(), "global_": {"q_proj": {"a": np.ones(5, np.int32)}}})
    with pytest.raises(UserError, match=r'\["float32", 4\], this run\'s is \["int32", 5\]'):
        latest(tmp_path, {"shapes": shapes})
