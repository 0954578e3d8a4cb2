"""What tests share: eight CPU devices, strict arithmetic, compiled programs, the paper's data."""

import os
import shutil
import tempfile
from pathlib import Path

import jax
import pytest

jax.config.update("jax_platforms", os.environ.setdefault("JAX_PLATFORMS", "cpu"))
jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_default_matmul_precision", "highest")

# Shared with the commands that tests start: a program is compiled once a session, or, by mutation
# tests, once for many sessions.
_KEPT = os.environ.get("FEDDPA_TESTS_COMPILED")
_COMPILED = _KEPT or tempfile.mkdtemp(prefix="feddpa-compiled-")
os.environ["JAX_COMPILATION_CACHE_DIR"] = _COMPILED
# What is kept for many sessions is worth keeping however soon it is compiled.
_SECONDS = 0.0 if _KEPT else 0.2
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = str(_SECONDS)
jax.config.update("jax_compilation_cache_dir", _COMPILED)
jax.config.update("jax_persistent_cache_min_compile_time_secs", _SECONDS)


def pytest_unconfigure() -> None:
    """Removes the session's compiled programs."""
    if not _KEPT:
        shutil.rmtree(_COMPILED, ignore_errors=True)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The data of the paper, which are not part of the repository."""
    folder = (Path(__file__).parents[1] / "../shared/data/feddpa_flan").resolve()
    if not folder.is_dir():
        pytest.skip("the paper's data are not there: ../shared/data/feddpa_flan")
    return folder
