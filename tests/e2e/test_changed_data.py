"""Training data, models and adapters that change, move or go while a run is under way."""

import json
import shutil
from pathlib import Path

import pytest

from feddpa_jax.cli.program import main
from tests.e2e.small_runs import command_of, refused

pytestmark = pytest.mark.usefixtures("computed_once")


@pytest.fixture(scope="module")
def finished(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a finished run."""
    root = tmp_path_factory.mktemp("finished") / "root"
    assert main(command_of("train", root, data)) == 0
    return root


def change_data(data: Path, folder: Path, **changes: str) -> Path:
    """The data with the first example of anna's changed."""
    copy = Path(shutil.copytree(data, folder))
    file = copy / "clients" / "anna" / "train.jsonl"
    first, *rest = file.read_text().splitlines()
    file.write_text("\n".join([json.dumps(json.loads(first) | changes), *rest]) + "\n")
    return copy


@pytest.mark.parametrize("name", ["train", "eval", "weigh", "export"])
def test_changed_training_data_are_refused(
    name: str, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    here = Path(shutil.copytree(data, tmp_path / "data"))
    root = tmp_path / "root"
    assert main(command_of("train", root, here)) == 0
    shutil.rmtree(here)
    change_data(data, here, output="no")
    words = ["the training data changed", "anna", "restore", "new --run-dir"]
    refused(capsys, command_of(name, root, here), *words)
    refused(capsys, [*command_of("generate", root, here)], *words)
    if name == "train":
        # Answers for another client rest on nothing that changed.
        assert main([*command_of("generate", root, here), "--client", "ben"]) == 0
    shutil.rmtree(here)
    shutil.copytree(data, here)
    # The same examples, written otherwise; and other test instances.
    file = here / "clients" / "anna" / "train.jsonl"
    file.write_text(file.read_text().replace('": "', '":   "'))
    tests = here / "clients" / "anna" / "test.jsonl"
    tests.write_text(tests.read_text().replace("yes", "perhaps"))
    if name == "train":
        assert main(command_of(name, root, here)) == 0


@pytest.mark.parametrize("field", ["instruction", "output", "task"])
def test_every_field_that_counts(field: str, data: Path, tmp_path: Path) -> None:
    from feddpa_jax.config import load_config
    from feddpa_jax.run.identity import data_digests
    from feddpa_jax.run.inputs import prepare

    def digests(folder: Path) -> dict[str, str]:
        options = ["--model.path", "tiny", "--data.path", str(folder), "--data.validation", "1"]
        return data_digests(prepare(load_config(None, options)))

    before = digests(data)
    after = digests(change_data(data, tmp_path / "changed", **{field: "other"}))
    assert before["anna"] != after["anna"]
    assert before["ben"] == after["ben"]
    swapped = Path(shutil.copytree(data, tmp_path / "swapped"))
    file = swapped / "clients" / "ben" / "train.jsonl"
    file.write_text("\n".join(reversed(file.read_text().splitlines())) + "\n")
    assert digests(swapped)["ben"] != before["ben"]


def test_changed_adapters_at_the_start_are_refused(
    finished: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    for out, step in ((first, "last"), (second, "best")):
        export = ["export", "--run-dir", str(finished / "run"), "--out", str(out), "--step", step]
        assert main(export) == 0
    named = ["--init.global_adapter", str(first / "global")]
    train = [*command_of("train", tmp_path, data), *named]
    assert main([*train, "--no-eval"]) == 0
    weights = first / "global" / "adapter_model.safetensors"
    whole = weights.read_bytes()
    (first / "global" / "feddpa.json").unlink()  # It would tell a change by itself.
    changed = bytearray(whole)
    changed[-1] ^= 1
    weights.write_bytes(changed)
    words = ["the adapters of init changed", "global_adapter", "new --run-dir"]
    refused(capsys, train, *words)
    refused(capsys, ["eval", "--run-dir", str(tmp_path / "run")], *words)
    weights.write_bytes(whole)
    assert main(["eval", "--run-dir", str(tmp_path / "run"), "--eval.modes", "[global]"]) == 0
    # Training has begun, and needs the folder no more.
    shutil.rmtree(first)
    assert main(["eval", "--run-dir", str(tmp_path / "run"), "--eval.modes", "[global]"]) == 0


def test_data_model_and_adapters_that_moved_are_known_by_their_content(
    finished: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    export = ["export", "--run-dir", str(finished / "run"), "--out", str(tmp_path / "exported")]
    assert main(export) == 0
    exported, other = tmp_path / "exported", tmp_path / "other"
    moved = Path(shutil.copytree(data, tmp_path / "data"))
    named = ["--init.global_adapter", str(exported / "global")]
    train = [*command_of("train", tmp_path, moved), "--no-eval"]
    model = ["--model.path", str(exported / "base")]
    assert main([*train, *named, *model]) == 0
    exported.rename(other)
    moved = moved.rename(tmp_path / "moved")
    run = tmp_path / "run"
    named[1], model[1] = str(other / "global"), str(other / "base")
    changed = change_data(data, tmp_path / "changed", output="no")
    for name in ("train", "eval", "export"):
        command = [*command_of(name, tmp_path, moved), *named, *model]
        others = [*command, "--data.path", str(changed)]
        refused(capsys, others, "the training data changed", "anna", "new --run-dir")
        assert str(changed) not in (run / "config.yaml").read_text()
        assert main([*command, "--data.path", str(moved)]) == 0, name
        refused(capsys, [*command, "--seed", "5"], "another configuration (seed: 0 -> 5)")
    assert (run / "config.yaml").read_text().count(str(moved)) == 1


def test_adapters_at_the_start_are_known_even_without_their_folder(
    finished: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert main(["export", "--run-dir", str(finished / "run"), "--out", str(out)]) == 0
    named = ["--init.global_adapter", str(out / "global"), "--fed.keep_checkpoints", "3"]
    train = [*command_of("train", tmp_path, data), *named, "--no-eval"]
    assert main(train) == 0
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "00002")
    (out / "global").rename(tmp_path / "kept")
    assert main(train) == 0
    assert "without a digest" not in capsys.readouterr().out
    (tmp_path / "kept").rename(out / "global")
    assert main(train) == 0
    weights = out / "global" / "adapter_model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    refused(capsys, train, "adapter_model.safetensors: has changed", "feddpa.json")
    (out / "global" / "feddpa.json").unlink()
    refused(capsys, train, "the adapters of init changed", "global_adapter")
    weights.write_bytes(content[:100])
    refused(capsys, train, "init.global_adapter", "adapter_model.safetensors")
