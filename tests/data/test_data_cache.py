"""What was prepared once is found again, healed, shared between processes, and bounded."""

import os
from pathlib import Path

import pytest

from feddpa_jax.data import data_cache, opened
from feddpa_jax.data.folders import load_federation
from feddpa_jax.data.population import Population
from feddpa_jax.types import UserError
from tests.data.flat_data import flat_file


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FEDDPA_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / f"data-{os.getuid()}"


def test_a_damaged_entry_is_built_again(tmp_path, cache, caplog):
    path = f"hf:{flat_file(tmp_path)}"
    before = tuple(load_federation(path, cache="on").clients)
    (entry,) = [place for place in cache.iterdir() if place.is_dir()]
    (entry / "rows.npy").write_bytes(b"")
    assert tuple(load_federation(path, cache="on").clients) == before
    assert "rows.npy has 0 bytes" in caplog.text and "built again" in caplog.text


def test_the_cache_keeps_to_its_bound(tmp_path, cache, monkeypatch):
    def entry_of(number: int) -> Path:
        folder = tmp_path / str(number)
        folder.mkdir(exist_ok=True)
        if not (folder / "flat.jsonl").exists():
            flat_file(folder)
        found = load_federation(f"hf:{folder / 'flat.jsonl'}", cache="on").clients
        assert isinstance(found, Population)
        return found.folder

    first, second = entry_of(0), entry_of(1)
    os.utime(first, (1, 1))
    os.utime(second, (2, 2))
    size = sum(file.stat().st_size for file in first.iterdir())
    entry_of(0)  # Used again, so that the second is the one not used for longest.
    monkeypatch.setenv(data_cache.BOUND, str(2 * size + 200))
    third = entry_of(2)
    assert sorted(place for place in cache.iterdir() if place.is_dir()) == sorted([first, third])
    monkeypatch.setenv(data_cache.BOUND, "1")
    fourth = entry_of(3)
    assert [place for place in cache.iterdir() if place.is_dir()] == [fourth]


def test_another_process_waits(tmp_path, cache):
    from concurrent.futures import ThreadPoolExecutor

    path = f"hf:{flat_file(tmp_path)}"
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: load_federation(path, cache="on").names, range(4)))
    assert len(set(found)) == 1
    assert len([place for place in cache.iterdir() if place.is_dir()]) == 1


def test_a_cache_that_cannot_be_written(tmp_path, monkeypatch, caplog):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("FEDDPA_CACHE", str(tmp_path / "file"))
    path = f"hf:{flat_file(tmp_path)}"
    with pytest.raises(UserError, match="FEDDPA_CACHE: the cache cannot be used"):
        load_federation(path, cache="on")
    # What is large and was not asked for is loaded then.
    monkeypatch.setattr(opened, "LARGE_FILE", 10)
    assert isinstance(load_federation(path).clients, tuple)
    assert "loaded into memory" in caplog.text


def test_what_a_killed_build_left_is_removed(tmp_path, cache):
    left = cache / ".population-0123.writing"
    left.mkdir(parents=True)
    (left / "train.arrow").write_text("half")
    load_federation(f"hf:{flat_file(tmp_path)}", cache="on")
    assert not left.exists()
