"""What tests share: strict arithmetic, devices, compiled programs, the paper's data.

Also how they are shared between workers, selected and measured (`selection.py`).
"""

import collections
import ctypes
import gc
import os
import resource
import shutil
import tempfile
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import jax
import pytest

from feddpa_jax.devices import mesh
from tests.selection import (
    QUICK_TESTS,
    ROOT,
    has_quick_tests,
    is_short,
    name_of,
    record,
    seconds_of,
)

# Tiny models compute for microseconds and compile for seconds, so the compiler does not optimize.
# Without its emitters for fusions, and with one piece of code a program, it takes half of the time.
# `XLA_FLAGS= bash launch/test.sh` tests what users run.
_FAST = (
    "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true "
    "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
)
os.environ.setdefault("XLA_FLAGS", _FAST)
jax.config.update("jax_platforms", os.environ.setdefault("JAX_PLATFORMS", "cpu"))
jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_default_matmul_precision", "highest")

# Every program, eager operations included, is compiled once a session: by one of its workers, or by
# a command that a test starts. Mutation tests keep the programs for many sessions.
_GIVEN = os.environ.get("FEDDPA_TESTS_COMPILED")
_COMPILED = _GIVEN or tempfile.mkdtemp(prefix="feddpa-compiled-")
os.environ["FEDDPA_TESTS_COMPILED"] = _COMPILED
os.environ["JAX_COMPILATION_CACHE_DIR"] = _COMPILED
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
jax.config.update("jax_compilation_cache_dir", _COMPILED)
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
# Of a program that another process is writing, or was killed while it wrote: it is compiled again.
os.environ["PYTHONWARNINGS"] = "ignore:Error reading persistent compilation cache entry:UserWarning"

# CPU seconds of each file's tests; and of each process, with the commands that it started, and its
# largest bytes of memory.
_spent: collections.defaultdict[str, float] = collections.defaultdict(float)
_processes: list[tuple[float, int]] = []


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """Two workers for the whole suite or a marker's share of it, none for chosen tests."""
    chosen = config.option.keyword or config.args != config.getini("testpaths")
    return 0 if chosen else min(2, os.cpu_count() or 1)


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """With `-m quick`, files without quick tests are not even imported."""
    if config.option.markexpr != "quick" or collection_path.suffix != ".py":
        return None
    return None if has_quick_tests(collection_path) else True


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks what is quick; workers start with the longest files, and with new ones."""
    for item in items:
        if is_short(item.path) or item.nodeid.partition("[")[0] in QUICK_TESTS:
            item.add_marker("quick")
    if "PYTEST_XDIST_WORKER" in os.environ:
        items.sort(key=lambda item: -seconds_of(item.path))


def pytest_collection_finish() -> None:
    """What was imported stays; the garbage collector need not look at it again and again."""
    gc.collect()
    gc.freeze()


def _cpu_seconds() -> float:
    return sum(os.times()[:4])


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, Any, Any]:
    """Measures a test, with the fixtures that begin and end with it."""
    before = _cpu_seconds()
    result = yield
    _spent[name_of(item.path)] += _cpu_seconds() - before
    return result


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Keeps what this process took; a worker sends it."""
    size = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    # Workers count for themselves.
    alone = not getattr(session.config.option, "numprocesses", None)
    _processes.append((sum(os.times()[: 4 if alone else 2]), size))
    sent = getattr(session.config, "workeroutput", None)
    if sent is not None:
        sent["took"] = (dict(_spent), _processes[-1])


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Takes what a worker sends."""
    spent, process = getattr(node, "workeroutput", {}).get("took", ({}, (0.0, 0)))
    for name, seconds in spent.items():
        _spent[name] += seconds
    _processes.append(tuple(process))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Says what the session took, and records it where asked."""
    seconds = sum(seconds for seconds, _ in _processes)
    sizes = ", ".join(f"{size / 2**30:.1f}" for _, size in _processes)
    terminalreporter.write_line(f"CPU time: {seconds:.0f} s; GB of memory by process: {sizes}")
    if os.environ.get("FEDDPA_RECORD_COSTS"):
        record(_spent)


def pytest_unconfigure() -> None:
    """Removes the session's compiled programs."""
    if not _GIVEN:
        shutil.rmtree(_COMPILED, ignore_errors=True)


@pytest.fixture(scope="session", autouse=True)
def _two_devices() -> Iterator[None]:
    """A run is split over two devices where its test does not say how many.

    A program for all eight takes half as long again to make.
    """
    from feddpa_jax.run import inputs

    def make_mesh(clients: int | None = None, model: int = 1, devices: Any = None) -> Any:
        given = clients is not None or model != 1 or devices is not None
        return mesh.make_mesh(clients, model, devices if given else jax.devices()[:2])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(inputs, "make_mesh", make_mesh)
        yield


@pytest.fixture(scope="module", autouse=True)
def _memory_ends_with_its_module() -> Iterator[None]:
    """Compiled programs go, and the C library gives back what it holds for later."""
    yield
    jax.clear_caches()
    gc.collect()
    library = ctypes.CDLL(None)
    if hasattr(library, "malloc_trim"):
        library.malloc_trim(0)


@pytest.fixture(scope="module")
def shared_steps() -> Iterator[None]:
    """Asked for by files with many alike experiments: the same phase is traced once."""
    from tests.shared_steps import sharing_steps

    with sharing_steps():
        yield


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The data of the paper, which are not part of the repository."""
    folder = (ROOT / "../shared/data/feddpa_flan").resolve()
    if not folder.is_dir():
        pytest.skip("the paper's data are not there: ../shared/data/feddpa_flan")
    return folder
