"""The revision that a run records is the one of the code that ran."""

import subprocess
from pathlib import Path

import pytest

from feddpa_jax.run.revision import code_revision

WHO = ["-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "commit.gpgsign=false"]


def git(folder: Path, *words: str) -> str:
    ran = subprocess.run(["git", *WHO, *words], cwd=folder, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout.strip()


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A package in a repository of its own, with another folder beside it."""
    folder = tmp_path / "repository" / "package"
    folder.mkdir(parents=True)
    (folder / "code.py").write_text("a = 1\n")
    (folder.parent / "notes.txt").write_text("a\n")
    git(folder.parent, "init", "-q")
    git(folder.parent, "add", ".")
    git(folder.parent, "commit", "-q", "-m", "a")
    return folder


def test_the_revision_and_whether_the_code_differs_from_it(package: Path) -> None:
    head = git(package, "rev-parse", "HEAD")
    assert len(head) == 40
    assert code_revision(package) == head
    (package.parent / "notes.txt").write_text("b\n")
    (package / "other.txt").write_text("untracked\n")
    assert code_revision(package) == head
    (package / "code.py").write_text("a = 2\n")
    assert code_revision(package) == f"{head}-dirty"
    git(package, "add", "code.py")
    assert code_revision(package) == f"{head}-dirty"


def test_another_repository_s_revision_is_not_the_code_s(package: Path) -> None:
    installed = package.parent / ".venv" / "site-packages" / "package"
    installed.mkdir(parents=True)
    (installed / "code.py").write_text("a = 1\n")
    assert code_revision(installed) is None
    (package.parent / ".gitignore").write_text(".venv\n")
    assert code_revision(installed) is None


def test_no_repository_and_git_s_own_variables(
    package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    head = git(package, "rev-parse", "HEAD")
    assert code_revision(tmp_path) is None
    monkeypatch.setenv("GIT_DIR", str(package.parent / ".git"))
    monkeypatch.setenv("GIT_WORK_TREE", str(package.parent))
    assert code_revision(tmp_path) is None
    assert code_revision(package) == head
    monkeypatch.setenv("PATH", str(tmp_path))
    assert code_revision(package) is None
