"""The git revision of the code that runs."""

import os
import shutil
import subprocess
from pathlib import Path

MODIFIED = "-dirty"


def code_revision(folder: Path) -> str | None:
    """The revision of the repository whose code a folder is.

    A package that is installed below somebody else's repository, as in a virtual environment there,
    is not that repository's code.

    Args:
      folder: of the code.

    Returns:
      The commit, with `MODIFIED` behind it if the code differs from it; None where the folder's
      code is in no repository, or git is not there.
    """
    if shutil.which("git") is None:
        return None
    tracked = _git(folder, "ls-files", "--", ".")
    revision = _git(folder, "rev-parse", "HEAD")
    if not tracked or not revision:
        return None
    changed = _git(folder, "status", "--porcelain", "--untracked-files=no", "--", ".")
    return revision.strip() + (MODIFIED if changed else "")


def _git(folder: Path, *words: str) -> str:
    """What a git command says; empty if it fails."""
    # Within a hook, git's own variables name another repository.
    environment = {k: v for k, v in os.environ.items() if not k.startswith("GIT_")}
    try:
        ran = subprocess.run(
            ["git", "--no-optional-locks", *words],
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=30,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return "" if ran.returncode else ran.stdout
