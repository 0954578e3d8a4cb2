"""A run whose folder is in a bucket, from its first round to its answers."""

from pathlib import Path

import pytest

from feddpa_jax.cli.program import main
from feddpa_jax.files.bucket import folder_at
from feddpa_jax.run.checkpoint import rounds_saved
from tests import fake_bucket
from tests.e2e.small_runs import SETTINGS, quick, write_data


def test_trained_resumed_and_evaluated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_data(tmp_path / "data")
    settings = list(SETTINGS)
    settings[settings.index("--fed.keep_checkpoints") + 1] = "2"
    on_disk = ["train", "--run-dir", str(tmp_path / "run"), "--data.path", str(data), *settings]
    train = ["train", "--run-dir", "gs://mine/run", "--data.path", str(data), *settings]
    with quick(), fake_bucket.serve(monkeypatch) as objects:
        assert main(on_disk) == 0

        def same(start: str) -> None:
            """Whether files that hold no paths or times are those of a run on a disk."""
            names = [name for name in objects if name.startswith(f"mine/run/{start}")]
            assert names
            for name in names:
                if "commit_success" not in name and not name.endswith("manifest.json"):
                    assert objects[name] == (tmp_path / name.removeprefix("mine/")).read_bytes()

        assert main(train) == 0
        assert "a bucket has no locks" in capsys.readouterr().out
        for start in ("checkpoints", "metrics.jsonl", "eval/instances.jsonl"):
            same(start)
        # As a kill leaves it: the last checkpoint's manifest was not written yet.
        folder = folder_at("gs://mine/run/checkpoints")
        last = rounds_saved(folder)[-1]
        del objects[f"mine/run/checkpoints/{last:05d}/manifest.json"]
        assert last not in rounds_saved(folder)
        assert main(train) == 0
        assert "resuming after" in capsys.readouterr().out
        same("checkpoints")
        del objects["mine/run/eval/instances.jsonl"]
        assert main(["eval", "--run-dir", "gs://mine/run"]) == 0
        same("eval/instances.jsonl")
