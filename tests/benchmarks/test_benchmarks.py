"""The benchmark measures the same work on both sides, and says so when it would not."""

import json
from pathlib import Path

import pytest

from benchmarks import comparison, torch_loop
from benchmarks.agreement import compare
from benchmarks.program import main
from feddpa_jax.types import UserError

TINY = [
    *("--model.path", "tiny", "--model.dtype", "float32", "--data.max_length", "128"),
    *("--data.max_train", "6", "--data.max_test", "1", "--lora.rank", "2"),
    *("--fed.batch_size", "2", "--fed.micro_batch_size", "1", "--fed.local_epochs", "1"),
    *("--eval.max_new_tokens", "4", "--weighting.support", "2", "--mesh.clients", "1"),
    *("--updates", "2", "--repeat", "1"),
]


def bench(out: Path, *more: str) -> int:
    return main(["--out", str(out), *TINY, *more])


def test_both_sides(tmp_path: Path, capsys):
    assert bench(tmp_path / "b", "--clients", "1,2", "--instances", "2") == 0
    results = json.loads((tmp_path / "b" / "bench.json").read_text())
    training, generation = results["training"], results["generation"]
    assert training["ratio"] > 0 and generation["ratio"] > 0
    assert training["ours"]["real_tokens"] == training["torch"]["real_tokens"]
    assert 0 < training["ours"]["real_share"] <= 1
    assert training["ours"]["later_compilations"] == 0
    assert results["check"]["compared"] == 4 and results["check"]["largest"] < 1e-3
    assert training["first_losses"]["compared"] == 8
    assert [row["clients"] for row in results["scaling"]] == [1, 2]
    assert generation["agreement"]["identical_answers"] == 1.0
    assert results["environment"]["devices"] and "rank: 2" in results["config"]
    shown = capsys.readouterr().out
    for words in ("torch + peft, one by one", "s a client and update", "100.0% identical"):
        assert words in shown


def test_without_torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    monkeypatch.setattr(comparison, "missing_packages", lambda: "No module named 'torch'")
    assert bench(tmp_path / "b", "--clients", "", "--instances", "1") == 0
    results = json.loads((tmp_path / "b" / "bench.json").read_text())
    assert results["training"]["torch"] is None and results["generation"]["torch"] is None
    assert results["training"]["ours"]["tokens_per_second"] > 0
    assert "torch was not measured: No module named 'torch'" in capsys.readouterr().out


def test_other_work_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    honest = torch_loop._train
    monkeypatch.setattr(
        torch_loop,
        "_train",
        lambda model, updates, rate, norm: honest(model, updates, 300 * rate, norm),
    )
    assert bench(tmp_path / "b", "--clients", "", "--instances", "0") == 2
    error = capsys.readouterr().err
    assert (
        error.startswith("launch/bench.sh: error: the two sides do not do the same work: ")
        and error.count("\n") == 1
    )
    assert not (tmp_path / "b").exists()


def test_losses_are_compared_one_by_one():
    assert compare({"a": [2.0, 1.0]}, {"a": [2.0, 1.0005]}, "float32").largest < 1e-3
    for theirs in ({"a": [2.0, 1.1]}, {"a": [2.0]}, {"b": [2.0, 1.0]}, {"a": [2.0, float("nan")]}):
        with pytest.raises((UserError, ValueError, KeyError, AssertionError)):
            compare({"a": [2.0, 1.0]}, theirs, "float32")


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--clients", "1,x"], "--clients: '1,x' is no list of numbers from 1 to 4096"),
        (["--clients", "1,1000000000000"], "is no list of numbers from 1 to 4096"),
        (["--updates", "0"], "--updates: 0 is not a number from 1 to 10,000"),
        (["--instances", "-1"], "--instances: -1 is not a number from 0 to 1,000,000"),
        (["--repeat", "1000000000000"], "--repeat: 1000000000000 is not a number from 1"),
        (["--repeat", "0"], "--repeat: 0 is not"),
    ],
)
def test_bad_options(tmp_path: Path, capsys, more: list[str], message: str):
    assert bench(tmp_path / "b", *more) == 2
    assert message in capsys.readouterr().err


def test_wrong_options_end_in_one_line(capsys):
    assert main(["--repeat", "x"]) == 2
    line = "launch/bench.sh: error: argument --repeat: invalid int value: 'x'; see launch/bench.sh"
    assert capsys.readouterr().err.startswith(line)
    assert main(["--fed.rownds", "3"]) == 2
    error = capsys.readouterr().err
    assert "did you mean 'fed.rounds'" in error and error.count("\n") == 1
    assert main(["--out", "a\udcff\0"]) == 2
    assert "embedded null byte" in capsys.readouterr().err


def test_stopped_by_ctrl_c(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    def press(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(comparison, "prepare", press)
    assert bench(tmp_path / "b") == 130
    assert capsys.readouterr().err == "launch/bench.sh: stopped; nothing was written\n"


def test_a_fault_of_the_program_is_not_hidden(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(comparison, "prepare", lambda _: {}["x"])
    with pytest.raises(KeyError):
        bench(tmp_path / "b")


def test_a_benchmark_is_not_overwritten(tmp_path: Path, capsys):
    (tmp_path / "bench.json").write_text("{}")
    assert bench(tmp_path) == 2
    assert "holds a bench.json already" in capsys.readouterr().err
