"""The revision that a run records is the one of the code that ran."""

import shutil
import subprocess
from pathlib import Path

import pytest

import feddpa_jax
from feddpa_jax.run import environment
from feddpa_jax.run.environment import describe_environment
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


def test_a_run_records_the_whole_package_wherever_it_was_started(
    package: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not the revision of the current folder's repository; nor of a part of the package alone."""
    monkeypatch.chdir(package)
    folders: list[Path] = []

    def note(folder: Path) -> str | None:
        folders.append(folder)
        return code_revision(folder)

    monkeypatch.setattr(environment, "code_revision", note)
    recorded = describe_environment()["git_revision"]
    assert recorded != git(package, "rev-parse", "HEAD")
    assert folders == [Path(feddpa_jax.__file__).parent]


def test_an_installed_copy_has_no_revision(
    package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether it was started in a repository, or lies in an environment within one."""
    monkeypatch.chdir(package)
    for place in (tmp_path / "site-packages", package.parent / ".venv" / "site-packages"):
        shutil.copytree(package, place / "package")
        assert code_revision(place / "package") is None
