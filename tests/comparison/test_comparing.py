"""Comparisons in memory and in a folder: what is trained, what is kept, what comes of it."""

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import feddpa_jax as fd
from feddpa_jax.cli.program import main
from feddpa_jax.files import manifest
from feddpa_jax.report.content import read_runs
from feddpa_jax.report.paired import differences
from tests.e2e.small_runs import SETTINGS, write_data

pytestmark = pytest.mark.usefixtures("shared_steps")

METHODS = "fedit,feddpa_t,local"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def options(data: Path) -> list[str]:
    return [*SETTINGS, "--data.path", str(data), "--fed.rounds", "2"]


@pytest.fixture(scope="module")
def config(options: list[str]) -> fd.Config:
    return fd.load_config(None, options)


@pytest.fixture(scope="module")
def base() -> fd.Base:
    return fd.load_base("tiny", dtype="float32")


@pytest.fixture(scope="module")
def folder(config: fd.Config, base: fd.Base, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a finished comparison."""
    out = tmp_path_factory.mktemp("compared") / "out"
    fd.compare(config, METHODS, seeds=[0, 1], out=out, base=base).write(out)
    return out


@pytest.fixture(scope="module")
def found(folder: Path, config: fd.Config, base: fd.Base) -> fd.Comparison:
    return fd.compare(config, METHODS, seeds=[0, 1], out=folder, base=base)


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is trained and evaluated, as it happens."""
    done: list[str] = []

    def noted(name: str) -> Callable[..., Any]:
        original = getattr(fd.Experiment, name)

        def call(self: fd.Experiment, *arguments: Any, **named: Any) -> Any:
            done.append(f"{name} {self.config.fed.method} {self.config.seed}")
            return original(self, *arguments, **named)

        return call

    for name in ("rounds", "evaluate"):
        monkeypatch.setattr(fd.Experiment, name, noted(name))
    return done


def numbers(found: fd.Comparison) -> list[Any]:
    """Everything in the table but the time that it took."""
    frame = found.to_pandas().drop(columns="seconds")
    assert set(frame["against"]) == {found.against}
    return json.loads(str(frame.to_json(orient="records")))


def test_a_comparison_in_short(found: fd.Comparison):
    head, *lines = repr(found).split("\n  ")
    assert head == "Comparison(methods=(fedit, feddpa_t, local), seeds=(0, 1))"
    assert [line.partition(":")[0] for line in lines] == list(found.metrics)
    last = found[found.metrics[-1]]["local"]
    assert lines[-1].endswith(f", local P {last['P'].value:.4g} TTP {last['TTP'].value:.4g}")


def test_runs_are_ordinary_run_folders(folder: Path, config: fd.Config, options: list[str]):
    runs = sorted(path.relative_to(folder).as_posix() for path in folder.glob("*/seed_*"))
    assert runs == [f"{m}/seed_{s}" for m in ("feddpa_t", "fedit", "local") for s in (0, 1)]
    run = fd.Experiment.open(folder / "feddpa_t" / "seed_1")
    assert (run.config.fed.method, run.config.seed) == ("feddpa_t", 1)
    assert run.generate("anna", "Hi").mode == "instance"
    # The command resumes it as its own: nothing is left to train.
    place = str(folder / "feddpa_t" / "seed_1")
    own = ["--fed.method", "feddpa_t", "--seed", "1", "--no-eval"]
    assert main(["train", "--run-dir", place, *options, *own]) == 0


def test_a_finished_comparison_is_only_read(
    folder: Path, config: fd.Config, base: fd.Base, trained: list[str]
):
    before = {p: p.stat().st_mtime_ns for p in folder.rglob("*") if p.is_file()}
    again = fd.compare(config, METHODS, seeds=[0, 1], out=folder, base=base)
    assert trained == []
    assert {p: p.stat().st_mtime_ns for p in folder.rglob("*") if p.is_file()} == before
    # Other methods and seeds are added to it, and fewer are picked from it.
    few = fd.compare(config, "local,fedit", seeds=1, out=folder, base=base)
    assert (few.methods, few.seeds, trained) == (("local", "fedit"), (1,), [])
    assert few["nll"]["local"]["P"].by_seed == again["nll"]["local"]["P"].by_seed[1:]


def test_evaluated_runs_need_no_checkpoints(
    folder: Path, found: fd.Comparison, config: fd.Config, base, trained: list[str], tmp_path: Path
):
    """They may be removed to save space: what is compared is in the evaluations."""
    leave = shutil.ignore_patterns("checkpoints", "clients")
    shutil.copytree(folder, tmp_path / "small", ignore=leave)
    again = fd.compare(config, METHODS, seeds=[0, 1], out=tmp_path / "small", base=base)
    assert (numbers(again), trained) == (numbers(found), [])
    # Without the evaluation there is nothing left of a run but to train it again.
    shutil.rmtree(tmp_path / "small" / "fedit" / "seed_0" / "eval")
    again = fd.compare(config, METHODS, seeds=[0, 1], out=tmp_path / "small", base=base)
    assert (numbers(again), trained) == (numbers(found), ["rounds fedit 0", "evaluate fedit 0"])


def test_memory_gives_the_same_numbers(found: fd.Comparison, config: fd.Config, base: fd.Base):
    memory = fd.compare(config, METHODS, seeds=[0, 1], base=base)
    assert numbers(memory) == numbers(found)
    assert {run.folder for run in memory.runs} == {None}


def test_one_seed_has_the_intervals_of_its_evaluation(folder: Path, config: fd.Config, base):
    one = fd.compare(config, "feddpa_t", seeds=1, out=folder, base=base)
    summary = json.loads((folder / "feddpa_t" / "seed_1" / "eval" / "summary.json").read_text())
    (row,) = one.rows
    for measure, estimate in row.scores["nll"].items():
        assert estimate.to_json() == summary["modes"]["instance"]["nll"][measure]
        assert estimate.over_seeds is None
    assert "no interval over seeds" in " ".join(one.notes)


def test_differences_are_those_of_the_report(folder: Path, config: fd.Config, base: fd.Base):
    one = fd.compare(config, METHODS, seeds=0, out=folder, base=base, against="local")
    runs = read_runs([folder / m / "seed_0" for m in ("feddpa_t", "local")])
    theirs = differences(runs[0], runs[1])["nll"]
    ours = next(row for row in one.rows if row.method == "feddpa_t").minus["nll"]
    for measure, span in (("P", theirs.p), ("TTP", theirs.ttp)):
        assert ours[measure].value == pytest.approx(span.value)
        assert ours[measure].over_instances.why == span.over_instances.why != ""
    assert next(row for row in one.rows if row.method == "local").minus == {}


def test_means_and_intervals_over_seeds(found: fd.Comparison):
    estimate = found["nll"]["local"]["P"]
    low, high = sorted(estimate.by_seed)
    assert estimate.value == pytest.approx((low + high) / 2)
    # Two values: t(0.975, 1) = 12.706, sd = (high - low) / sqrt(2), over sqrt(2).
    assert estimate.over_seeds is not None
    assert estimate.over_seeds.high - estimate.value == pytest.approx(
        12.706 * (high - low) / 2, 1e-3
    )


def test_costs_are_those_of_metrics_jsonl(folder: Path, found: fd.Comparison):
    def lines(method: str, seed: int) -> list[dict[str, Any]]:
        text = (folder / method / f"seed_{seed}" / "metrics.jsonl").read_text()
        return [json.loads(line) for line in text.splitlines()]

    for cost in found.costs:
        for name, field in (
            *(("tokens", "real_tokens"), ("updates", "updates"), ("seconds", "seconds")),
            *(("bytes_sent", "client_bytes_sent"), ("bytes_received", "client_bytes_received")),
        ):
            whole = [sum(line[field] for line in lines(cost.method, seed)) for seed in (0, 1)]
            assert getattr(cost, name) == pytest.approx(np.mean(whole)), name
    by_method = {cost.method: cost for cost in found.costs}
    assert by_method["local"].bytes_sent == 0 < by_method["fedit"].bytes_sent
    # Rounds of FedDPA-T have two phases from the second on.
    assert by_method["feddpa_t"].tokens_off == pytest.approx(0.5)
    assert by_method["local"].tokens_off == by_method["fedit"].updates_off == 0


def test_what_is_missing_is_done_and_no_more(
    folder: Path, found: fd.Comparison, config, base, trained: list[str], tmp_path: Path
):
    out = tmp_path / "out"
    shutil.copytree(folder, out)
    shutil.rmtree(out / "local" / "seed_0")
    shutil.rmtree(out / "fedit" / "seed_1" / "eval")
    (out / "feddpa_t" / "seed_0" / "eval" / "instances.jsonl").write_text("{}\n")
    again = fd.compare(config, METHODS, seeds=[0, 1], out=out, base=base)
    assert trained == [
        *("rounds feddpa_t 0", "evaluate feddpa_t 0", "rounds local 0", "evaluate local 0"),
        *("rounds fedit 1", "evaluate fedit 1"),
    ]
    assert numbers(again) == numbers(found)


@pytest.mark.parametrize(
    ("changes", "evaluated"),
    [
        ({"weighting": {"scale": 0.25}}, True),
        ({"eval": {"max_new_tokens": 3}}, True),
        ({"eval": {"metrics": ["nll", "exact_match"]}}, True),
        ({"eval": {"batch_tokens": 700}}, False),
    ],
)
def test_evaluations_of_other_settings_do_not_serve(
    changes: dict[str, Any], evaluated: bool, folder, config, base, trained, tmp_path
):
    out = tmp_path / "out"
    shutil.copytree(folder / "feddpa_t" / "seed_0", out / "feddpa_t" / "seed_0")
    ((section, fields),) = changes.items()
    other = dataclasses.replace(getattr(config, section), **fields)
    changed = dataclasses.replace(config, **{section: other})
    fd.compare(changed, "feddpa_t", seeds=0, out=out, base=base)
    assert trained == (["rounds feddpa_t 0", "evaluate feddpa_t 0"] if evaluated else [])


def test_evaluations_of_earlier_rounds_and_other_instances_do_not_serve(
    folder, config, base, trained, tmp_path
):
    run = tmp_path / "out" / "fedit" / "seed_0"
    shutil.copytree(folder / "fedit" / "seed_0", run)
    few = fd.load_federation(config.data.path, validation=1)
    fewer = dataclasses.replace(few, test=few.test[:1])
    fd.Experiment(base, fewer, config_of(config, "fedit"), run_dir=run).evaluate()
    fd.compare(config, "fedit", seeds=0, out=tmp_path / "out", base=base)
    assert trained == ["evaluate fedit 0", "rounds fedit 0", "evaluate fedit 0"]
    trained.clear()
    file = run / "eval" / "summary.json"
    text = file.read_text()
    assert '"round": 1' in text
    earlier = text.replace('"round": 1', '"round": 0')
    manifest.write_one(run / "eval", "summary.json", earlier, "")
    fd.compare(config, "fedit", seeds=0, out=tmp_path / "out", base=base)
    (run / "eval" / manifest.NAME).unlink()
    fd.compare(config, "fedit", seeds=0, out=tmp_path / "out", base=base)
    assert trained == ["rounds fedit 0", "evaluate fedit 0"] * 2


def config_of(config: fd.Config, method: str) -> fd.Config:
    return dataclasses.replace(config, fed=dataclasses.replace(config.fed, method=method))


def test_all_modes(folder, config, base, trained, tmp_path):
    out = tmp_path / "out"
    for method in ("fedit", "feddpa_t"):
        shutil.copytree(folder / method / "seed_0", out / method / "seed_0")
    given: dict[str, Any] = {"seeds": 0, "out": out, "base": base, "modes": "all"}
    found = fd.compare(config, "fedit,feddpa_t", **given)
    assert [what for what in trained if "evaluate" in what] == [
        *("evaluate fedit 0", "evaluate feddpa_t 0"),
    ]
    assert [(row.method, row.mode, row.answers) for row in found.rows] == [
        *(("fedit", "global", True), ("fedit", "base", False)),
        *(("feddpa_t", "instance", True), ("feddpa_t", "base", False)),
        *(("feddpa_t", mode, False) for mode in ("global", "local", "fixed")),
    ]
    trained.clear()
    fd.compare(config, "fedit,feddpa_t", **given)
    assert trained == []
    # All modes hold what is answered with; one mode does not hold all.
    fd.compare(config, "fedit,feddpa_t", **{**given, "modes": "answer"})
    assert trained == []


def test_equal_tokens(config: fd.Config, base: fd.Base):
    found = fd.compare(config, "feddpa_t,fedit", seeds=0, base=base, equal="tokens")
    first, second = found.costs
    # 1 + 2 phases: three rounds of FedIT are as much.
    assert (first.rounds, second.rounds, second.tokens_off) == (2, 3, 0)
    assert "nearest to those of feddpa_t" in " ".join(found.notes)


def test_a_method_twice_and_a_file_of_ones_own(config: fd.Config, base, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("own.py").write_text(
        "from feddpa_jax.federated.fedit import fedit\n\ndef mine(lora):\n    return fedit(lora)\n"
    )
    methods = ["feddpa_t", "feddpa_t(fed.local_weight=0.25)", "own.py:mine"]
    found = fd.compare(config, methods, seeds=0, base=base, out="out", against="own.py:mine")
    assert sorted(path.name for path in Path("out").iterdir()) == [
        *("feddpa_t", "feddpa_t_fed.local_weight_0.25", "own.py_mine"),
    ]
    values = [own["P"].value for own in found["nll"].values()]
    assert len(set(values)) == 3
    assert found.against == "own.py:mine"


def test_another_configuration_is_refused_before_anything_is_trained(
    folder: Path, config: fd.Config, base: fd.Base, trained: list[str]
):
    other = dataclasses.replace(config, fed=dataclasses.replace(config.fed, learning_rate=0.5))
    with pytest.raises(fd.UserError) as error:
        fd.compare(other, f"centralized,{METHODS}", seeds=[0, 1], out=folder, base=base)
    assert str(error.value) == (
        f"{folder / 'fedit' / 'seed_0'}: the run there has another configuration "
        "(fed.learning_rate: 0.01 -> 0.5); use another --out, or that run's settings"
    )
    assert trained == []
    assert not (folder / "centralized").exists()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"seeds": []}, "seeds: []; name at least one"),
        ({"seeds": [0, 0]}, "seeds: [0, 0]; name at least one, and each once"),
        ({"seeds": [-1]}, "seeds: -1 is none"),
        ({"seeds": [1.5]}, "seeds: 1.5 is none"),
        ({"against": "ditto"}, "against: 'ditto' is none of the methods; name one of fedit"),
        ({"equal": "rounds"}, "equal: 'rounds' is unknown; give updates or tokens"),
        ({"modes": "x"}, "modes: 'x' is unknown; give answer or all"),
    ],
)
def test_wrong_arguments(given: dict[str, Any], message: str, config: fd.Config):
    with pytest.raises(fd.UserError) as error:
        fd.compare(config, "fedit,local", **given)
    assert str(error.value).startswith(message)


def test_data_without_test_instances(config: fd.Config, base: fd.Base):
    data = fd.load_federation(config.data.path, validation=1)
    with pytest.raises(fd.UserError, match="has no test instance to compare on"):
        fd.compare(config, "fedit", base=base, data=dataclasses.replace(data, test=()))


def test_progress_names_the_run(config: fd.Config, base: fd.Base):
    seen: list[fd.Progress] = []
    fd.compare(config, "fedit,local", seeds=0, base=base, on_progress=seen.append)
    tasks = list(dict.fromkeys(event.task for event in seen))
    assert tasks == [
        "all runs",
        *(f"run 1 of 2, fedit, seed 0: {task}" for task in ("training", "scoring")),
        *(f"run 2 of 2, local, seed 0: {task}" for task in ("training", "scoring")),
    ]
    whole = [event for event in seen if event.task == "all runs"]
    assert whole[-1].finished and whole[-1].done == whole[-1].total > 0
    assert [event.done for event in whole] == sorted(event.done for event in whole)
    assert whole[-1].note == "run 2 of 2"
