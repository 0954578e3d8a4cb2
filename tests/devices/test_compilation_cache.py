"""Compiled programs are kept between processes, in a folder with a bound, and never in the way."""

import logging
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from jax.experimental.compilation_cache import compilation_cache as jax_cache

from feddpa_jax.cli.program import main
from feddpa_jax.devices import compilation_cache
from feddpa_jax.devices.compilation_cache import cache_folder, keep_compiled_programs, tidy
from feddpa_jax.types import UserError
from tests.e2e.small_runs import command_of, write_data

SETTINGS = (
    "jax_compilation_cache_dir",
    "jax_enable_compilation_cache",
    "jax_compilation_cache_max_size",
    "jax_persistent_cache_min_compile_time_secs",
    "jax_persistent_cache_min_entry_size_bytes",
)


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """JAX as it starts, without a cache; afterwards that of the other tests."""
    before = {name: value(name) for name in SETTINGS}
    for name in SETTINGS:
        monkeypatch.delenv(name.upper(), raising=False)
    jax.config.update("jax_compilation_cache_dir", None)
    yield
    for name, old in before.items():
        jax.config.update(name, old)
    jax_cache.reset_cache()


@pytest.fixture
def counted() -> Iterator[Counter]:
    """How often JAX looked for a program, found it, and kept a new one."""
    events: Counter = Counter()

    def note(event: str, **about: Any) -> None:
        events[event.rpartition("/")[2]] += 1

    jax.monitoring.register_event_listener(note)
    yield events
    jax.monitoring.unregister_event_listener(note)


def value(setting: str) -> Any:
    """What JAX is set to."""
    return getattr(jax.config, setting)


def multiply(number: int) -> None:
    """Compiles and runs a program that no one else has."""
    jax.jit(lambda x: x * number + 1)(jnp.zeros(3)).block_until_ready()


def kept(folder: Path) -> list[Path]:
    return sorted(folder.glob("*-cache"))


def test_the_folder_is_the_users(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    part = Path("compilation") / cache_folder({}).name
    assert cache_folder({}) == tmp_path / "home/.cache/feddpa_jax" / part
    common = {"XDG_CACHE_HOME": str(tmp_path / "common")}
    assert cache_folder(common) == tmp_path / "common/feddpa_jax" / part
    assert cache_folder(common | {"FEDDPA_CACHE": "~/own"}) == tmp_path / "home/own" / part
    folder = keep_compiled_programs(common)
    assert folder is not None and folder == cache_folder(common)
    assert value("jax_compilation_cache_dir") == str(folder)
    assert folder.stat().st_mode & 0o777 == 0o700
    assert value("jax_compilation_cache_max_size") == 2 * 2**30


def test_other_processors_have_other_folders(tmp_path, monkeypatch):
    """Machines may share a home; a program for one may hold instructions that another has not."""
    monkeypatch.setattr(compilation_cache, "_CPU", tmp_path / "cpu")
    names = []
    for number, flags in enumerate(("avx2", "avx2 amx_bf16", "avx2")):
        # What changes from minute to minute does not count, nor do further cores.
        core = f"model : 1\ncpu MHz : {number}\nflags : {flags}\n\n"
        (tmp_path / "cpu").write_text(core * (number + 1))
        names.append(cache_folder({}).name)
    assert names[0] == names[2] != names[1]
    (tmp_path / "cpu").unlink()
    assert cache_folder({}).name


def test_settings_of_jax_come_first(tmp_path):
    jax.config.update("jax_compilation_cache_dir", str(tmp_path / "own"))
    assert keep_compiled_programs({"FEDDPA_CACHE": str(tmp_path)}) is None
    assert value("jax_compilation_cache_dir") == str(tmp_path / "own")
    jax.config.update("jax_compilation_cache_dir", None)
    jax.config.update("jax_enable_compilation_cache", False)
    assert keep_compiled_programs({"FEDDPA_CACHE": str(tmp_path)}) is None
    jax.config.update("jax_enable_compilation_cache", True)
    seconds = {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "7"}
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 7.0)
    assert keep_compiled_programs({"FEDDPA_CACHE": str(tmp_path)} | seconds) is not None
    assert value("jax_persistent_cache_min_compile_time_secs") == 7.0


def test_off_and_what_is_no_bound(tmp_path):
    for given in ("off", "0"):
        own = {"FEDDPA_CACHE": str(tmp_path / "x"), "FEDDPA_COMPILATION_CACHE": given}
        assert keep_compiled_programs(own) is None
    assert not (tmp_path / "x").exists() and value("jax_compilation_cache_dir") is None
    for given in ("2 GiB", "-1", "1e9", "²", "9" * 19):
        with pytest.raises(UserError, match="neither off nor a number of bytes"):
            keep_compiled_programs({"FEDDPA_COMPILATION_CACHE": given})


def test_programs_are_kept_up_to_the_bound(tmp_path, counted):
    """And those that are used stay."""
    own = {"FEDDPA_CACHE": str(tmp_path), "FEDDPA_COMPILATION_CACHE": "12000"}
    folder = keep_compiled_programs(own)
    assert folder is not None
    for number in range(8):
        multiply(number)
        jax.clear_caches()
        multiply(0)
        jax.clear_caches()
        assert sum(path.stat().st_size for path in kept(folder)) <= 12000
    counted.clear()
    multiply(0)
    assert counted["cache_hits"] >= 1 and counted["cache_misses"] == 0
    jax.clear_caches()
    multiply(1)  # It was removed long ago.
    assert counted["cache_misses"] == 1


@pytest.mark.parametrize("what", ["a file", "others may write"])
def test_a_folder_that_cannot_be_used_is_said_once(tmp_path, caplog, what):
    own = {"FEDDPA_CACHE": str(tmp_path)}
    folder = cache_folder(own)
    folder.parent.mkdir(parents=True)
    if what == "a file":
        folder.touch()
    else:
        folder.mkdir()
        folder.chmod(0o777)
    with caplog.at_level(logging.WARNING):
        assert keep_compiled_programs(own) is None
    (said,) = caplog.messages
    assert "compiled programs are not kept" in said and "FEDDPA_CACHE" in said
    assert value("jax_compilation_cache_dir") is None
    multiply(3)


def test_a_disk_that_fills_up_stops_nothing(tmp_path, recwarn, counted):
    folder = keep_compiled_programs({"FEDDPA_CACHE": str(tmp_path)})
    assert folder is not None
    multiply(5)
    for path in kept(folder):
        path.write_bytes(b"damaged")
    folder.chmod(0o500)
    try:
        jax.clear_caches()
        counted.clear()
        multiply(5)
        multiply(6)
    finally:
        folder.chmod(0o700)
    assert counted["cache_hits"] == 0
    assert not [warning for warning in recwarn if "compilation cache" in str(warning.message)]


def test_what_a_killed_process_left_is_removed(tmp_path, monkeypatch):
    """Half an entry would keep JAX from adding any other."""
    for name in ("whole", "half", "old", "new"):
        (tmp_path / f"{name}-cache").write_bytes(b"program")
    for name, used in {"whole": 3, "old": 1, "new": 2, "alone": 9}.items():
        (tmp_path / f"{name}-atime").write_bytes(used.to_bytes(8, "little"))
    tidy(tmp_path)
    assert {path.name for path in kept(tmp_path)} == {"new-cache", "old-cache", "whole-cache"}
    assert not (tmp_path / "alone-atime").exists()
    monkeypatch.setattr(compilation_cache, "MOST_ENTRIES", 2)
    tidy(tmp_path)
    assert [path.name for path in kept(tmp_path)] == ["whole-cache"]
    assert sorted(path.name for path in tmp_path.glob("*-atime")) == ["whole-atime"]


def test_a_second_run_compiles_nothing(tmp_path, monkeypatch, counted):
    """Wherever its folder is; and what it computes has the same bits."""
    monkeypatch.setenv("FEDDPA_CACHE", str(tmp_path / "cache"))
    data = write_data(tmp_path / "data")
    files = []
    for number in (1, 2):
        root = tmp_path / f"root {number}"
        jax.clear_caches()
        counted.clear()
        for name, more in (("train", ["--no-eval", "--fed.rounds", "1"]), ("generate", [])):
            assert main([*command_of(name, root, data), *more]) == 0
        assert (counted["cache_misses"] > 0) == (number == 1)
        assert (counted["cache_hits"] == counted["compile_requests_use_cache"]) == (number == 2)
        found = sorted((root / "run/checkpoints/00000/state").glob("*/*"))
        files.append([path.read_bytes() for path in found if path.is_file()])
    assert files[0] == files[1] != []


def test_the_environment_is_read_by_default(tmp_path, monkeypatch):
    monkeypatch.setitem(os.environ, "FEDDPA_COMPILATION_CACHE", "off")
    assert keep_compiled_programs() is None
