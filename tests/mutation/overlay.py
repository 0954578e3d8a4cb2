"""A copy of the project in which one file is changed, and test sessions in it."""

import contextlib
import importlib
import os
import shutil
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tests.mutation.mutant import ROOT, Mutant

# What tests import besides the package: once, and forked with everything in it.
_HEAVY = (
    "pytest hypothesis numpy jax jax.numpy flax.struct flax.traverse_util optax pydantic "
    "jaxtyping yaml rich.table rich.progress safetensors.numpy tokenizers datasets gguf "
    "rouge_score.rouge_scorer torch transformers peft huggingface_hub"
)


def import_heavy() -> None:
    """Imports what tests use and no mutant changes; starts no device."""
    for name in _HEAVY.split():
        with contextlib.suppress(ImportError):
            importlib.import_module(name)


class Overlay:
    """A copy of the package and its tests beside links to everything else in the project."""

    def __init__(self, folder: Path, compiled: Path):
        """Args: a folder of its own, and one for compiled programs, which overlays share."""
        self.root = folder / "project"
        self.compiled = compiled
        self.changed: Path | None = None
        self.root.mkdir(parents=True)
        for name in ("feddpa_jax", "tests"):
            shutil.copytree(ROOT / name, self.root / name)
        for path in ROOT.iterdir():
            if path.name not in ("feddpa_jax", "tests", ".git"):
                (self.root / path.name).symlink_to(path)
        shared = ROOT.parent / "shared"
        if shared.is_dir():
            (folder / "shared").symlink_to(shared)

    def set(self, mutant: Mutant | None) -> None:
        """Puts a mutant's file in place."""
        if mutant is not None:
            self.changed = self.root / "feddpa_jax" / mutant.file
            self._write(self.changed, mutant.source)

    def reset(self) -> None:
        """Puts the original file back."""
        if self.changed is not None:
            original = ROOT / self.changed.relative_to(self.root)
            self._write(self.changed, original.read_text(encoding="utf-8"))
            self.changed = None

    def _write(self, path: Path, source: str) -> None:
        path.write_text(source, encoding="utf-8")
        # Python takes a file of the same size and second for the compiled one.
        for compiled in (path.parent / "__pycache__").glob(f"{path.stem}.*.pyc"):
            compiled.unlink()

    def start(self, tests: tuple[str, ...], log: Path) -> int:
        """Starts a test session in a process of its own; its id, which leads its group."""
        sys.stdout.flush()
        child = os.fork()
        if child == 0:
            code = 3
            try:
                os.setsid()
                code = self._session(tests, log)
            finally:
                os._exit(code)
        return child

    def _session(self, tests: tuple[str, ...], log: Path) -> int:
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(output, 1)
        os.dup2(output, 2)
        os.chdir(self.root)
        os.environ["PYTHONPATH"] = str(self.root)
        os.environ["FEDDPA_TESTS_COMPILED"] = str(self.compiled)
        here = {str(ROOT), "", os.getcwd()}
        sys.path[:] = [str(self.root), *(path for path in sys.path if path not in here)]
        for name in [name for name in sys.modules if name.split(".")[0] == "tests"]:
            del sys.modules[name]
        import pytest

        named = [f"tests/{test}" for test in tests]
        code = int(pytest.main(["-x", "-q", "-p", "no:cacheprovider", "--no-header", *named]))
        assert sys.modules["feddpa_jax"].__path__[0] == str(self.root / "feddpa_jax")
        return code


def end(child: int) -> None:
    """Ends a session and what it started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)


def sessions(
    overlays: Sequence[Overlay], work: Sequence[tuple[Mutant | None, tuple[str, ...], float]]
) -> Iterator[tuple[Any, int | None, float]]:
    """Runs tests, each in a free overlay.

    Args:
      overlays: as many sessions run at a time.
      work: mutant, or None; tests; and the seconds after which the session is ended.

    Yields:
      The mutant (without one, the tests), the session's exit code, None if it took too long, and
      its seconds.
    """
    waiting = list(reversed(work))
    free = list(overlays)
    running: dict[int, tuple[Overlay, Mutant | None, tuple[str, ...], float, float]] = {}
    try:
        while waiting or running:
            while waiting and free:
                mutant, tests, seconds = waiting.pop()
                overlay = free.pop()
                overlay.set(mutant)
                child = overlay.start(tests, overlay.root.parent / "log.txt")
                running[child] = overlay, mutant, tests, time.monotonic(), seconds
            for child, (overlay, mutant, tests, since, seconds) in list(running.items()):
                took = time.monotonic() - since
                done, status = os.waitpid(child, os.WNOHANG)
                if not done and took < seconds:
                    continue
                end(child)  # With whatever it left running.
                if not done:
                    os.waitpid(child, 0)
                del running[child]
                overlay.reset()
                free.append(overlay)
                code = os.waitstatus_to_exitcode(status) if done else None
                yield tests if mutant is None else mutant, code, took
            time.sleep(0.02)
    finally:
        for child in running:
            end(child)
