"""What commands do with files that changed, are damaged, are in use, or are left from a kill."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from feddpa_jax.cli.program import main
from feddpa_jax.files.disk import lock_of
from feddpa_jax.files.lock import hold
from feddpa_jax.report.content import read_runs
from feddpa_jax.types import UserError
from tests.e2e.small_runs import command_of, refused

pytestmark = pytest.mark.usefixtures("computed_once")


@pytest.fixture(scope="module")
def finished(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run, evaluated and weighed."""
    root = tmp_path_factory.mktemp("finished") / "root"
    for name in ("train", "weigh"):
        assert main(command_of(name, root, data)) == 0
    return root


@pytest.fixture(scope="module")
def other(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another run's folder: another learning rate, all else equal."""
    root = tmp_path_factory.mktemp("other") / "root"
    assert main([*command_of("train", root, data), "--fed.learning_rate", "2e-2"]) == 0
    assert main(command_of("weigh", root, data)) == 0
    return root / "run"


@pytest.fixture
def root(finished: Path, tmp_path: Path) -> Path:
    """A copy of the finished run, in `run`."""
    return Path(shutil.copytree(finished, tmp_path / "root"))


def without_sources(run: Path) -> None:
    """As an older version left it: no digests, no manifests."""
    from feddpa_jax.files.disk import sha256

    for place in (run / "checkpoints").glob("0*"):
        record = json.loads((place / "record.json").read_text())
        del record["data"], record["init"]
        (place / "record.json").write_text(json.dumps(record))
        sums = json.loads((place / "manifest.json").read_text())
        size = (place / "record.json").stat().st_size
        sums["files"]["record.json"] = [size, sha256(place / "record.json")]
        (place / "manifest.json").write_text(json.dumps(sums))
    for folder in (run, run / "eval", run / "weigh"):
        (folder / "manifest.json").unlink()


def test_a_run_of_an_older_version_goes_on_with_a_warning(
    root: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    without_sources(root / "run")
    capsys.readouterr()
    assert main(command_of("eval", root, data)) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert said.count("has no checksums") == 1
    assert "older version wrote it" not in said
    (root / "run" / "eval" / "manifest.json").unlink()
    assert main(command_of("report", root, data)) == 0
    # The run, its evaluation and its laboratory.
    assert " ".join(capsys.readouterr().out.split()).count("has no checksums") == 3
    assert main(command_of("weigh", root, data)) == 0
    # Its data are known by their path alone.
    moved = shutil.copytree(data, root / "moved")
    refused(capsys, [*command_of("train", root, data), "--data.path", str(moved)], "data.path")
    assert main(command_of("train", root, data)) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "has no checksums" not in said
    assert said.count("without a digest of the training data; not compared") == 1
    assert "adapters of init" not in said
    assert main(command_of("report", root, data)) == 0
    assert "has no checksums" not in " ".join(capsys.readouterr().out.split())


def cut(file: Path, other: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def flip(file: Path, other: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def end_cut(file: Path, other: Path) -> None:
    file.write_bytes(file.read_bytes()[:-3])


DAMAGES: dict[str, Callable[[Path, Path], Any]] = {
    "empty": lambda file, other: file.write_bytes(b""),
    "half": cut,
    "cut": end_cut,
    "flip": flip,
    "gone": lambda file, other: file.unlink(),
    "another run's": lambda file, other: shutil.copyfile(other, file),
}
READ = (
    *("config.yaml", "environment.json", "metrics.jsonl", "manifest.json"),
    *("eval/summary.json", "eval/instances.jsonl", "eval/manifest.json"),
    *("weigh/summary.json", "weigh/settings.csv", "weigh/manifest.json"),
)


@pytest.mark.parametrize("name", DAMAGES)
def test_a_report_is_refused_or_the_same(
    name: str, finished: Path, other: Path, tmp_path: Path
) -> None:
    run = Path(shutil.copytree(finished / "run", tmp_path / "run"))
    (whole,) = read_runs([run])
    found, same = 0, []
    for file in READ:
        content = (run / file).read_bytes()
        DAMAGES[name](run / file, other / file)
        if (run / file).exists() and (run / file).read_bytes() == content:
            same.append(file)
            continue
        try:
            (again,) = read_runs([run])
        except UserError as error:
            found += 1
            assert str(run) in str(error)
            assert "\n" not in str(error)
            assert "; " in str(error)  # What to do about it.
        else:
            assert again == whole, file
            # Its manifest is gone, or it is a file that no command reads.
            assert name == "gone" or file == "weigh/settings.csv", file
        (run / file).write_bytes(content)
    # settings.csv is read by no command; without a manifest a folder is an older version's.
    assert found == len(READ) - 1 - (3 if name == "gone" else 0) - len(same)
    assert same == (["environment.json"] if name == "another run's" else [])


@pytest.mark.parametrize("name", DAMAGES)
def test_export_and_training_refuse_what_they_read(
    name: str, root: Path, other: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for command, file in (
        ("export", "eval/summary.json"),
        ("export", "config.yaml"),
        ("export", "manifest.json"),
        ("train", "config.yaml"),
        ("train", "metrics.jsonl"),
        ("train", "manifest.json"),
    ):
        content = (root / "run" / file).read_bytes()
        DAMAGES[name](root / "run" / file, other / file)
        if name == "gone" and file == "manifest.json":
            assert main(command_of(command, root, data)) == 0
            shutil.rmtree(root / "exports", ignore_errors=True)
        elif name == "gone" and (command, file) == ("train", "config.yaml"):
            refused(capsys, command_of(command, root, data), "config.yaml", "missing")
        else:
            refused(capsys, command_of(command, root, data), str(root / "run"))
        (root / "run" / file).write_bytes(content)
    assert main(command_of("export", root, data)) == 0


@pytest.mark.parametrize("name", DAMAGES)
def test_evidence_is_refused_or_the_same(
    name: str, root: Path, other: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weigh = command_of("weigh", root, data)
    results = [root / "run" / "weigh" / file for file in ("summary.json", "settings.csv")]
    whole = [file.read_bytes() for file in results]
    for file in ("identity.json", "parts.json", "global.safetensors"):
        path = root / "run" / "weigh" / "evidence" / file
        content = path.read_bytes()
        DAMAGES[name](path, other / "weigh" / "evidence" / file)
        if name in ("gone", "flip") and file == "parts.json":
            # A part that is not listed under its name is computed again.
            code = main(weigh)
            assert code == 0 or (name, code) == ("flip", 2)
            assert [file.read_bytes() for file in results] == whole
        elif path.exists() and path.read_bytes() == content:
            continue  # The base's evidence is the same in both runs.
        else:
            refused(capsys, weigh, str(path.parent), "--fresh")
        path.write_bytes(content)


def test_a_damaged_tracking_file_is_refused(root: Path) -> None:
    from feddpa_jax.run.folder import RunFolder
    from feddpa_jax.run.trackers import TRACKERS, Tracker, tracking

    idents = []

    def opened(place: Any) -> Tracker:
        idents.append(place.ident)
        return Tracker(lambda step, values: None, lambda: None)

    def follow() -> None:
        with tracking(["wandb"], root / "run", project="p", config={}):
            pass

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(TRACKERS, "wandb", ("json", opened))
        follow()
        follow()
        assert idents[0] == idents[1]
        flip(root / "run" / "tracking.json", root)
        with pytest.raises(UserError, match=r"tracking\.json: has changed .*leave track\.to"):
            follow()
    assert RunFolder(root / "run").read("environment.json")


@pytest.mark.parametrize(
    ("name", "held"),
    [
        *(("train", "run/train"), ("train", "run/eval"), ("eval", "run/eval")),
        *(("weigh", "run/weigh"), ("export", "exports/one"), ("report", "pages/page.html")),
    ],
)
def test_a_second_process_is_told_of_the_first(
    name: str, held: str, root: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with hold(root / held, "", pytest.fail):
        refused(capsys, command_of(name, root, data), f"process {os.getpid()} on ", "wait for it")
    assert main(command_of(name, root, data)) == 0


def test_reading_goes_on_beside_training(root: Path, data: Path) -> None:
    with hold(root / "run" / "train", "", pytest.fail):
        for name in ("eval", "report", "export"):
            assert main(command_of(name, root, data)) == 0


def test_a_report_beside_an_evaluation(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flip(root / "run" / "eval" / "summary.json", root)
    command = ["report", str(root / "run"), "--out", str(root / "page.html")]
    with hold(root / "run" / "eval", "", pytest.fail):
        refused(capsys, command, "summary.json", f"process {os.getpid()}", "wait for it")
    refused(capsys, command, "summary.json has changed".replace(" ", ": ", 1), "feddpa eval")


def test_checkpoints_that_go_while_they_are_read(
    root: Path, data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from feddpa_jax.run import checkpoint
    from feddpa_jax.run.client_files import ClientFiles

    folder = root / "run" / "checkpoints"
    hidden = root / "hidden"
    shutil.copytree(folder, hidden)
    shutil.rmtree(folder)
    # Beside this, training writes round 2 and removes rounds 0 and 1.
    shutil.copytree(hidden, folder)
    (folder / "00002").rename(folder / "00001")
    damaged, read = checkpoint.find_damage, ClientFiles.read

    def go_on() -> None:
        shutil.rmtree(folder)
        shutil.copytree(hidden, folder)

    def find_damage(place: Path) -> str:
        if place.name == "00001":
            go_on()
        return damaged(place)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "find_damage", find_damage)
        capsys.readouterr()
        assert main(command_of("eval", root, data)) == 0
        assert "damaged" not in capsys.readouterr().out

    def read_late(self: ClientFiles, *arguments: Any) -> Any:
        if (folder / "00001").exists():
            go_on()
            raise UserError("gone")
        return read(self, *arguments)

    (folder / "00002").rename(folder / "00001")
    with monkeypatch.context() as patch:
        patch.setattr(ClientFiles, "read", read_late)
        assert main(command_of("eval", root, data)) == 0


LEFT = (".config.yaml.writing", ".manifest.json.writing", ".train.feddpa.lock")


@pytest.mark.parametrize("names", [*((name,) for name in LEFT), LEFT])
def test_what_a_kill_left_blocks_nothing(
    names: tuple[str, ...], data: Path, tmp_path: Path
) -> None:
    for folder in (tmp_path / "run", tmp_path / "exports" / "one"):
        folder.mkdir(parents=True)
        for name in names:
            (folder / name).write_text("half")
    assert main([*command_of("train", tmp_path, data), "--no-eval"]) == 0
    assert not [p for p in (tmp_path / "run").iterdir() if p.name in LEFT]
    assert main(command_of("export", tmp_path, data)) == 0
    assert not [p for p in (tmp_path / "exports" / "one").iterdir() if p.name in LEFT]


def test_an_export_into_a_link_or_a_mounted_folder(
    root: Path, data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    export = command_of("export", root, data)
    out, real = root / "exports" / "one", root / "real" / "folder"
    for folder in (out.parent, real):
        folder.mkdir(parents=True)
    out.symlink_to(real)
    with monkeypatch.context() as patch:
        patch.setattr(os.path, "ismount", lambda path: path == out)
        refused(capsys, export, "mount point", "a new folder in it")
    assert main(export) == 0
    assert out.is_symlink()
    assert (real / "global" / "adapter_model.safetensors").is_file()
    assert [p.name for p in real.parent.iterdir()] == ["folder"]


def test_what_is_not_ours_is_left_alone(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "manifest.json").write_text('{"name": "my web page"}')
    refused(capsys, command_of("train", tmp_path, data), "something else than a run")
    assert [p.name for p in (tmp_path / "run").iterdir()] == ["manifest.json"]


def test_leftovers_in_checkpoints_go_and_private_files_are_private(root: Path, data: Path) -> None:
    checkpoints = root / "run" / "checkpoints"
    left = [
        checkpoints / ".writing-old-00000" / "state.safetensors",
        checkpoints / ".writing-00003" / "room",
        checkpoints / "clients" / "anna" / ".00003.safetensors.writing",
        checkpoints / "clients" / "anna" / "00003.safetensors",
    ]
    for path in left:
        path.parent.mkdir(exist_ok=True)
        path.write_text("half")
    own = checkpoints / "clients" / "ben"
    own.chmod(0o755)
    (kept,) = own.iterdir()
    kept.chmod(0o644)
    assert main(command_of("train", root, data)) == 0
    assert not any(path.exists() for path in left)
    private = [checkpoints / "clients", *(checkpoints / "clients").rglob("*")]
    assert len(private) == 5
    for path in private:
        assert path.stat().st_mode & 0o777 == (0o700 if path.is_dir() else 0o600), path


def test_a_checkpoint_that_a_kill_kept_from_being_removed_goes(root: Path, data: Path) -> None:
    checkpoints = root / "run" / "checkpoints"
    shutil.copytree(checkpoints / "00002", checkpoints / "00001")
    assert main(command_of("train", root, data)) == 0
    assert [p.name for p in checkpoints.glob("0*")] == ["00002"]


def test_every_file_is_private_from_the_start(data: Path, tmp_path: Path) -> None:
    mask = os.umask(0)
    try:
        assert main([*command_of("train", tmp_path, data), "--no-eval"]) == 0
    finally:
        os.umask(mask)
    clients = tmp_path / "run" / "checkpoints" / "clients"
    for path in [clients, *clients.rglob("*")]:
        assert path.stat().st_mode & 0o777 == (0o700 if path.is_dir() else 0o600), path
    assert (tmp_path / "run" / "config.yaml").stat().st_mode & 0o777 == 0o666
    assert not lock_of(tmp_path / "run" / "train").exists()
