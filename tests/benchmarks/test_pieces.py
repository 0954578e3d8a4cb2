"""What a piece of the paper's schedule keeps for the next one."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from benchmarks import pieces

RUNS = ["d/first/seed_0", "d/second/seed_0", "d/half/seed_0", "d/not_begun/seed_0"]


@pytest.fixture
def work(tmp_path: Path) -> Path:
    """Two evaluated runs and one with a round; a checkpoint has 30,000 bytes."""
    work, rng = tmp_path / "work", np.random.default_rng(0)
    for name in RUNS[:3]:
        run = work / name
        (run / "checkpoints" / "0").mkdir(parents=True)
        (run / "checkpoints" / "0" / "state").write_bytes(rng.bytes(30_000))
        (run / "config.yaml").write_text("seed: 0\n")
        (run / "metrics.jsonl").write_text('{"round": 0}\n')
    for name in RUNS[:2]:
        (work / name / "eval").mkdir()
        (work / name / "eval" / "summary.json").write_text(f'"{name}"')
    return work


def content(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize(
    ("most", "without"), [(10**6, []), (70_000, ["d/second/seed_0"]), (0, RUNS[:2])]
)
def test_all_but_adapters_that_do_not_fit_comes_back(work, tmp_path, most, without):
    pieces.pack(work, RUNS, tmp_path / "out", most)
    kept = sum(file.stat().st_size for file in (tmp_path / "out").iterdir())
    assert kept <= max(most, 35_000)
    pieces.unpack(tmp_path / "out", tmp_path / "next")
    lost = [f"{name}/checkpoints/0/state" for name in without]
    expected = {name: what for name, what in content(work).items() if name not in lost}
    assert content(tmp_path / "next") == expected


def test_a_run_that_is_there_stays_and_a_finished_one_is_not_packed_over(work, tmp_path):
    out = tmp_path / "out"
    pieces.pack(work, RUNS, out)
    half = work / RUNS[2]
    (half / "metrics.jsonl").write_text('{"round": 0}\n{"round": 1}\n')
    pieces.unpack(out, work)
    assert (half / "metrics.jsonl").read_text().count("\n") == 2
    pieces.pack(work, RUNS, out)
    # What is left of a finished run that was damaged here does not replace what was kept.
    (work / RUNS[0] / "eval" / "summary.json").unlink()
    pieces.pack(work, RUNS, out)
    pieces.unpack(out, tmp_path / "next")
    assert (tmp_path / "next" / RUNS[2] / "metrics.jsonl").read_text().count("\n") == 2
    assert (tmp_path / "next" / RUNS[0] / "eval" / "summary.json").exists()


def test_the_plan_has_every_method_three_seeds_of_four_and_the_cures(tmp_path):
    from feddpa_jax import methods
    from feddpa_jax.config.loading import load_config

    # Other tests register methods of their own.
    ours = {m for m in methods if methods.find(m).build.__module__.startswith("feddpa_jax.")}
    assert ours == {*pieces.FIRST, *pieces.OTHERS}
    runs = {name for case in pieces.paper_plan() for name in case.runs()}
    assert len(runs) == 2 * (len(ours) + 2 * 4 + len(pieces.CURES))
    fed = {}
    for case in pieces.paper_plan():
        config = load_config(pieces.ROOT / case.config[0], case.config[1:])
        assert config.fed.rounds == 20 and config.eval.metrics == ("nll", "exact_match")
        fed.setdefault(case.name, (config.fed, config.data.validation))
        assert fed[case.name] == (config.fed, config.data.validation)
        assert str(tmp_path / case.name) in case.command(tmp_path)
    # A cure is one change.
    plain, held = fed["dataset1_as_it_is"]
    assert (plain, held) == (fed["dataset1"][0], 30)
    stopped, one_epoch = fed["dataset1_stopped"][0], fed["dataset1_one_epoch"][0]
    assert dataclasses.replace(stopped, early_stopping=None) == plain != stopped
    assert dataclasses.replace(one_epoch, local_epochs=10) == plain != one_epoch


def test_without_time_it_lists_what_is_left(tmp_path, capsys):
    places = [str(tmp_path / "out"), "--work", str(tmp_path / "work")]
    assert pieces.main([*places, "--tiny", "--seconds", "0"]) == 1
    shown = capsys.readouterr().out.splitlines()
    assert shown[0] == "left: tiny/fedit/seed_0, 0 rounds done"
    assert shown[-1].startswith("0 of 2 runs are evaluated")
