"""Where this user's caches are."""

import os
from collections.abc import Mapping
from pathlib import Path

# The environment variable that names the folder.
FOLDER = "FEDDPA_CACHE"


def cache_root(environment: Mapping[str, str] = os.environ) -> Path:
    """`$FEDDPA_CACHE`, else `$XDG_CACHE_HOME/feddpa_jax`, else `~/.cache/feddpa_jax`.

    Args:
      environment: the variables.

    Raises:
      RuntimeError: there is no home folder.

    >>> cache_root({"FEDDPA_CACHE": "/scratch/feddpa"}).as_posix()
    '/scratch/feddpa'
    """
    named, common = environment.get(FOLDER), environment.get("XDG_CACHE_HOME")
    if named:
        return Path(named).expanduser().absolute()
    return (Path(common) if common else Path.home() / ".cache") / "feddpa_jax"
