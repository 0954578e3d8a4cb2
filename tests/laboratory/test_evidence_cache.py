"""Parts on disk: used again, kept over a stop, refused when they are another's or damaged."""

import json

import numpy as np
import pytest

from feddpa_jax.laboratory.evidence_cache import Cache
from feddpa_jax.types import UserError

IDENTITY = {"checkpoint": "1", "model": "2", "data": "3", "code version": "4"}


def part() -> dict[str, np.ndarray]:
    return {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.array([True, False])}


def never() -> dict[str, np.ndarray]:
    raise AssertionError("is there already")


def opened(folder, **changes) -> Cache:
    cache = Cache(folder, IDENTITY | changes)
    cache.open(fresh=False)
    return cache


def test_parts_are_computed_once(tmp_path):
    computed = opened(tmp_path / "e").part("one", part)
    again = opened(tmp_path / "e").part("one", never)
    assert again.keys() == computed.keys()
    for name in computed:
        np.testing.assert_array_equal(again[name], computed[name])
    assert opened(tmp_path / "e").holds(["one"])
    assert not opened(tmp_path / "e").holds(["one", "two"])


def test_a_stop_between_parts_loses_only_the_part_at_work(tmp_path):
    opened(tmp_path / "e").part("one", part)

    def stopped():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        opened(tmp_path / "e").part("two", stopped)
    # Written, but not yet entered: as if it had not been.
    (tmp_path / "e" / "two.safetensors").write_bytes(b"half")
    cache = opened(tmp_path / "e")
    cache.part("one", never)
    np.testing.assert_array_equal(cache.part("two", part)["a"], part()["a"])


@pytest.mark.parametrize("name", IDENTITY)
def test_another_identity_is_refused_by_name(tmp_path, name):
    opened(tmp_path / "e").part("one", part)
    with pytest.raises(UserError, match=rf"/e: {name} changed since the evidence .* --fresh"):
        opened(tmp_path / "e", **{name: "x"})
    cache = Cache(tmp_path / "e", IDENTITY | {name: "x"})
    cache.open(fresh=True)
    assert not cache.holds(["one"])


def test_what_changed_is_one_sentence(tmp_path):
    opened(tmp_path / "e")
    with pytest.raises(UserError) as refused:
        opened(tmp_path / "e", checkpoint="x", model="x", data="x")
    assert str(refused.value) == (
        f"{tmp_path / 'e'}: checkpoint, model and data changed since the evidence there was "
        "computed; compute it again with --fresh"
    )


@pytest.mark.parametrize("damage", ["flip", "cut", "gone", "parts.json", "identity.json"])
def test_damage_is_refused(tmp_path, damage):
    opened(tmp_path / "e").part("one", part)
    file = tmp_path / "e" / (damage if damage.endswith("json") else "one.safetensors")
    content = bytearray(file.read_bytes())
    if damage == "gone":
        file.unlink()
    elif damage == "flip":
        content[-1] ^= 1
        file.write_bytes(content)
    else:
        file.write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match=r"damaged; compute it again with --fresh"):
        opened(tmp_path / "e").part("one", never)


def test_files_are_plain(tmp_path):
    opened(tmp_path / "e").part("one", part)
    assert json.loads((tmp_path / "e" / "identity.json").read_text()) == IDENTITY
    names = {file.name for file in (tmp_path / "e").iterdir()}
    assert names == {"identity.json", "parts.json", "one.safetensors"}
