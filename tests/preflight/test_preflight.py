"""`feddpa check`: what it expects is what a run does, and all that is wrong is told at once."""

import dataclasses
import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pandas
import pytest

import feddpa_jax as fd
from feddpa_jax.adapters.lora import init_adapter
from feddpa_jax.adapters.mix import alone
from feddpa_jax.cli.program import main
from feddpa_jax.config import load_config
from feddpa_jax.data import opened
from feddpa_jax.data.glimpse import FewClients
from feddpa_jax.federated.traffic import traffic
from feddpa_jax.hf.tokenizer import byte_tokenizer
from feddpa_jax.models.decoder import random_model
from feddpa_jax.models.remat import Remat
from feddpa_jax.preflight import lengths as lengths_module
from feddpa_jax.preflight import some_data
from feddpa_jax.preflight.expected_work import ExpectedWork
from feddpa_jax.preflight.lengths import measure_lengths
from feddpa_jax.preflight.preflight import Preflight, check
from feddpa_jax.preflight.product_rate import product_rate
from feddpa_jax.preflight.shown_example import show_example, trained_tokens
from feddpa_jax.preflight.some_data import NOT_ALL_READ, look_at
from feddpa_jax.run.beginning import total_rounds
from feddpa_jax.run.folder import RunFolder
from feddpa_jax.run.history import append_round
from feddpa_jax.run.inputs import load_data, make_lora, make_method, prepare, training_data
from feddpa_jax.run.loop import round_tokens
from feddpa_jax.testing import tiny_config
from feddpa_jax.training.engine import make_engine
from feddpa_jax.training.memory import MemoryPlan, estimate_memory, plan_memory
from feddpa_jax.training.rows import BlockShape
from feddpa_jax.training.step import Frozen, Objective
from feddpa_jax.types import TokenizedExample, UserError

TINY = ["--model.path", "tiny", "--model.dtype", "float32", "--data.max_length", "256"]
TINY += ["--data.max_train", "3", "--data.max_test", "1", "--fed.rounds", "3"]


def config_of(*more: str) -> fd.Config:
    return load_config(None, [*TINY, *more])


def work_of(found: Preflight) -> ExpectedWork:
    assert found.problems == () and found.work is not None
    return found.work


@pytest.mark.parametrize("method", ["feddpa_t", "rolora", "fedlease", "centralized"])
def test_the_work_is_that_of_a_run(method: str):
    """A phase less in the first round; other leaves in every other; a phase of everybody first."""
    config = config_of("--fed.method", method, "--fed.local_epochs", "2")
    work = work_of(check(config))
    prepared = prepare(config, weights=False)
    data, made = training_data(config, prepared), make_method(config, prepared)
    tokens = [round_tokens(config, made, data, n) for n in range(total_rounds(config))]
    assert work.rounds == len(tokens)
    assert (work.tokens, work.round_tokens) == pytest.approx((sum(tokens), tokens[1]))
    phases = [made.phases_of(number, 3) for number in (1, 0)]
    members = data.participants(1)
    moved = traffic(made, make_lora(config, prepared), phases[0], members, phases[1])
    assert (work.received, work.sent) == moved
    assert work.participants == work.returning == len(data.names)
    assert 0.0 < work.real_share <= 1.0 and work.time.seconds > 0.0 and not work.time.measured


@pytest.mark.parametrize("method", ["fdlora", "feddpa_f"])
def test_phases_of_all_clients(method: str):
    """Before or after three rounds, of which three of eight clients return. A search has none."""
    more = ["--fed.cohort", "4", "--fed.dropout", "0.25"]
    work = work_of(check(config_of("--fed.method", method, *more)))
    shared = work_of(check(config_of("--fed.method", "fedit")))
    assert work.rounds == 4
    assert work.tokens == pytest.approx(shared.round_tokens * (1 + 3 * 3 / 8))


def test_a_wrong_size_leaves_the_work_unknown():
    """It would be that of another run."""
    found = check(config_of("--lora.rank", "100"))
    assert found.problems == (
        "lora.rank: 100 is more than the 32 rows of the widest adapted map of tiny; lower it",
    )
    assert found.work is None and found.lengths is not None


def test_a_problem_is_told_once():
    (problem,) = check(config_of("--fed.cohort", "9")).problems
    assert problem == "fed.cohort: 9 of 8 clients; give at most 8"


def test_more_clients_than_there_are(tmp_path: Path):
    """To train and to evaluate are refused alike, before a training."""
    wrong = config_of("--eval.clients", "99")
    said = "eval.clients: 99 of 8 clients; give at most 8"
    assert check(wrong).problems == (said,)
    assert check(config_of("--eval.clients", "8")).problems == ()
    with pytest.raises(UserError, match=said):
        fd.Experiment.from_config(wrong, run_dir=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_the_expected_cohort():
    more = ["--fed.method", "fedit", "--fed.dropout", "0.25"]
    whole = work_of(check(config_of("--fed.method", "fedit")))
    work = work_of(check(config_of(*more, "--fed.cohort", "4")))
    assert (work.participants, work.returning) == (4.0, 3.0)
    assert work.tokens == pytest.approx(whole.tokens * 3 / 8)
    some = ["--fed.availability", "daily", "--fed.availability_share", "0.25"]
    assert work_of(check(config_of(*more, *some))).participants == 2.0
    assert work_of(check(config_of(*some, "--fed.cohort", "1"))).participants == 1.0
    # Places are made for as many as may come.
    few = work_of(check(config_of("--fed.method", "fedit", *some)))
    assert few.memory[:3] == whole.memory[:3]


def test_a_run_that_has_begun_says_its_pace(tmp_path: Path):
    config = config_of()
    run = RunFolder(tmp_path / "run")
    run.start(config)
    append_round(run.path, {"round": 0, "seconds": 4.0, "real_tokens": 1000})
    work = work_of(check(config, run_dir=run.path))
    assert work.time.measured and work.time.pace == 250.0
    assert work.time.seconds == pytest.approx(work.tokens / 250.0)
    (tmp_path / "run" / "config.yaml").unlink()
    (problem,) = check(config, run_dir=run.path).problems
    assert "config.yaml: is missing" in problem


def test_many_clients_are_sampled(monkeypatch: pytest.MonkeyPatch):
    """What is expected of all follows from those that were looked at, whose mean differs little."""
    config = config_of("--fed.method", "flexlora", "--lora.ranks", "[1, 2, 3, 4, 5, 6, 7, 8]")
    whole = check(config)
    monkeypatch.setattr(lengths_module, "MOST_EXAMPLES", 7)
    some = check(config)
    assert whole.lengths is not None and some.lengths is not None
    assert (whole.lengths.sampled, some.lengths.sampled) == (False, True)
    assert (len(whole.lengths.measured), len(some.lengths.measured)) == (8, 3)
    works = [work_of(found) for found in (whole, some)]
    assert works[0].participants == works[1].participants == 8
    mean = np.mean([sum(map(len, (e.tokens_T for e in own))) for own in some.lengths.training])
    assert works[1].round_tokens == pytest.approx(8 * 10 * mean)
    assert works[1].tokens == pytest.approx(works[0].tokens, rel=0.3)
    other = check(dataclasses.replace(config, seed=3)).lengths
    assert other is not None and other.measured != some.lengths.measured


@pytest.mark.parametrize("ending", ["jsonl", "json", "csv", "parquet", "folder"])
def test_large_data_are_not_read_into_the_cache(tmp_path, monkeypatch, ending: str):
    """All is told as of data in the cache; but what is wrong with others is not seen."""
    monkeypatch.setenv("FEDDPA_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(opened, "LARGE_FILE", 10)
    monkeypatch.setattr(opened, "MANY_CLIENTS", 6)
    for module in (lengths_module, some_data):
        monkeypatch.setattr(module, "MOST_EXAMPLES", 9)
    rows = [
        {"who": f"u{n % 6}", "instruction": f"Say {n}.", "output": f"{n}" * (1 + n % 3)}
        for n in range(30)
    ]
    file = tmp_path / f"flat.{ending}"
    path = str(file) if ending == "folder" else f"hf:{file}?client_column=who"
    table = pandas.DataFrame(rows)
    if ending == "parquet":
        table.to_parquet(file)
    elif ending == "csv":
        table.to_csv(file, index=False)
    elif ending == "folder":
        for name, own in table.groupby("who"):
            (file / "clients" / str(name)).mkdir(parents=True)
            own.to_json(file / "clients" / str(name) / "train.jsonl", orient="records", lines=True)
    else:
        table.to_json(file, orient="records", lines=ending == "jsonl")
    config = config_of("--data.path", path, "--data.validation", "1", "--fed.cohort", "3")
    some = check(config)
    assert not list((tmp_path / "cache").glob("*/population-*"))
    assert some.problems == () and NOT_ALL_READ in some.remarks
    looked, part = look_at(config)
    assert part and isinstance(looked.clients, FewClients) and 0 < len(looked.clients.some) < 6
    (over,) = check(dataclasses.replace(config, fed={"cohort": 7})).problems
    assert over == "fed.cohort: 7 of 6 clients; give at most 6"
    load_data(config)
    whole = check(config)
    assert whole.remarks == tuple(one for one in some.remarks if one != NOT_ALL_READ)
    assert (some.example, work_of(some).tokens) == (whole.example, work_of(whole).tokens)
    assert some.lengths is not None and whole.lengths is not None
    assert some.lengths.measured == whole.lengths.measured and some.lengths.sampled
    assert some.lengths.tokens.tolist() == whole.lengths.tokens.tolist()


def test_tests_of_nobodys_tasks_are_remarked_on(tmp_path: Path):
    folder = tmp_path / "people"
    pairs = [(f"u{n % 3}", fd.Example(f"Say {n}.", "yes")) for n in range(6)]

    def remarks(*tasks: str) -> list[str]:
        shutil.rmtree(folder, ignore_errors=True)
        fd.write_population(folder, pairs, [fd.Example("Say.", "it", task=task) for task in tasks])
        found = check(config_of("--data.path", str(folder)))
        assert found.problems == ()
        return [remark for remark in found.remarks if "P is empty" in remark]

    (told,) = remarks("a", "b")
    assert told == (
        "no client has a test instance of a task of its own, so P is empty: clients train on "
        "u0, u1, u2, the test instances are of a, b; give both the same tasks"
    )
    assert remarks("a", "u2") == remarks() == []


def test_lengths_by_hand():
    def client(name: str, *answers: str) -> fd.Client:
        return fd.Client(name, tuple(fd.Example("ab", answer, task="t") for answer in answers))

    # "### Instruction:\nab\n\n### Response:\n" has 35 bytes, and the end is a token more.
    data = fd.Federation(
        (client("x", "1", "1234"), client("y", "12345678"), client("z")),
        test=(fd.Example("ab", "1"), fd.Example("much longer", "1")),
    )
    config = fd.Config(data={"max_length": 38})
    found = measure_lengths(config, byte_tokenizer(), data)
    assert sorted(found.tokens.tolist()) == [37, 38, 38]
    assert (found.counts.examples, found.counts.truncated, found.counts.dropped) == (3, 2, 0)
    assert (found.tests.examples, found.tests.dropped) == (2, 1)
    assert (found.measured, found.empty, found.sampled) == ((0, 1), ("z",), False)
    remarks = found.remarks(38)
    assert remarks[0].startswith("2 of 3 training examples are longer than data.max_length = 38")
    assert remarks[1].startswith("1 of 2 test instances") and len(remarks) == 2
    every = dataclasses.replace(found, empty=("a", "b", "c", "d"))
    assert every.nothing_left(38).startswith("clients 'a', 'b', 'c' and 1 more: no example is left")


def test_an_example_as_the_model_sees_it():
    found = check(config_of())
    assert found.example is not None and found.lengths is not None
    first = load_data(config_of()).clients[0].train[0]
    text = found.example.marked()
    assert text.startswith("### Instruction:\n" + first.instruction)
    assert text.endswith(f"### Response:\n«{first.output}<|end|>»")
    example = found.lengths.training[0][0]
    assert found.example.tokens == len(example.tokens_T)
    assert found.example.trained == int(trained_tokens(example).sum()) == len(first.output) + 1
    cut = TokenizedExample(example.tokens_T[:10], 10)
    assert "«" not in show_example(byte_tokenizer(), "x", cut).marked()


def test_the_estimated_memory_is_near_the_compilers():
    config = tiny_config(width=64, ffn=128, layers=3)
    model = random_model(config, jax.random.key(0), "float32")
    sizes = {"q_proj": config.target_sizes()["q_proj"]}
    trained = {
        "p": jax.eval_shape(lambda: init_adapter(jax.random.key(0), sizes=sizes, layers=3, rank=4))
    }
    shape, frozen = BlockShape(8, 128, 256), Frozen({}, {})
    engine = make_engine(model, scale=1.0, learning_rate=1e-3)
    compiled = engine.lower(Objective(alone("p")), trained, frozen, 4, shape).compile()
    told = plan_memory(compiled, model, trained, frozen, slots=4, limit=None)

    def guess(remat: Remat = "none", on_cpu: bool = True) -> MemoryPlan:
        return estimate_memory(
            model,
            trained,
            frozen,
            slots=4,
            shape=shape,
            remat=remat,
            on_cpu=on_cpu,
            limit=None,
        )

    assert guess()[:3] == told[:3]
    assert guess().activations / told.activations == pytest.approx(1.0, abs=0.3)
    # Elsewhere one layer's, the residual stream of each, 1024 tokens of 64 numbers, and the logits.
    less, whole = guess(remat="layer", on_cpu=False), guess(on_cpu=False)
    logits = 3 * 4 * 256 * config.vocab_size
    layer = (whole.activations - logits) / 3
    assert less.activations == layer + 3 * 4 * 64 * 1024 + logits


def test_the_rate_of_products_is_no_guess():
    """Twice the tokens, not twice the rate."""
    one, two = (product_rate(tiny_config(width=256, ffn=512), "float32", n) for n in (512, 1024))
    assert one > 1e8 and 0.2 < one / two < 5.0


WRONG = """
model: {path: tiny, dtyp: float32, attention: cudnn}
data: {max_length: 99, template: nothing}
fed: {rounds: -3, method: fedit, options: {foo: 1}, early_stopping: 2, cohort: 5}
lora: {rank: 100, ranks: [1, 2]}
eval: {max_new_tokens: 9999}
mesh: {clients: 64}
"""
# What stands in each problem's message, in their order.
FOUND = [
    *("unknown key 'model.dtyp'", "data.template: 'nothing'", "fed.rounds: -3", "seed: -4"),
    *("fed.cohort: 5 and fed.participation", "eval.max_new_tokens: 9999", "lora.rank: 100"),
    *("client 'client_0': no example is left", "mesh: 64 x 1"),
    *("model.attention: cudnn does not serve cpu", "lora.ranks:"),
    *("fed.early_stopping: client", "fed.options: 'foo'"),
]


def test_all_problems_at_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "wrong.yaml").write_text(WRONG)
    options = ["--fed.participation", "0.5", "--seed", "-4"]
    assert main(["check", "--config", str(tmp_path / "wrong.yaml"), *options]) == 2
    out, err = capsys.readouterr()
    told = [line for line in out.splitlines() if line.startswith("problem ")]
    assert len(told) == len(FOUND) == 13
    for number, (line, text) in enumerate(zip(told, FOUND, strict=True), start=1):
        assert line.startswith(f"problem {number}: ") and text in line
    assert err.count("\n") == 1
    assert err.startswith("feddpa: error: 13 problems, of which the first: ") and FOUND[0] in err
    # What was right is shown all the same.
    assert "8 clients: 768 training examples" in out and "« »" in out


def test_problems_of_the_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """All of them, of which ten are told, and others beside; a single one is told once."""
    file = tmp_path / "flat.jsonl"

    def write(wrong: int) -> list[str]:
        rows = [
            {"client": "u", "instruction": "Say.", "output": "" if n < wrong else "it"}
            for n in range(14)
        ]
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return ["check", "--model.path", "tiny", "--data.path", f"hf:{file}"]

    assert main([*write(13), "--model.dtype", "float64"]) == 2
    out, err = capsys.readouterr()
    told = [line for line in out.splitlines() if line.startswith("problem ")]
    assert len(told) == 12 and err.startswith("feddpa: error: 12 problems, of which the first: ")
    assert "model.dtype" in told[0]
    assert "record 1: field 'output' is empty" in told[1] and "record 10: " in told[10]
    assert told[11] == "problem 12: data.path: 3 more problems of the data"
    assert main(write(1)) == 2
    out, err = capsys.readouterr()
    assert out == "" and "record 1: field 'output' is empty" in err and err.count("\n") == 1


def test_nothing_is_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    folder = tmp_path / "run"
    assert main(["check", *TINY, "--run-dir", str(folder)]) == 0
    out, err = capsys.readouterr()
    assert err == "" and out.endswith("no problem found\n")
    assert "3 rounds of 8 clients:" in out and "memory of each device, estimated: base" in out
    assert not folder.exists()


def test_data_and_model_that_are_not_there(tmp_path: Path):
    data = {"path": str(tmp_path / "data")}
    found = check(fd.Config(model={"path": str(tmp_path / "model")}, data=data))
    assert len(found.problems) == 2 and found.work is found.lengths is found.example is None
    assert ["data" in found.problems[0], "model" in found.problems[1]] == [True, True]


def test_the_values_that_are_right_are_kept(tmp_path: Path):
    file = tmp_path / "some.yaml"
    file.write_text(
        "fed: {rounds: 4, batch_size: no}\nweighting: {rule: cosine, parameters: {x: 1}}"
    )
    problems: list[str] = []
    config = load_config(file, ["--lora.rank", "3", "--seed", "x"], problems=problems)
    assert (config.fed.rounds, config.lora.rank, config.seed) == (4, 3, 0)
    assert config.weighting.rule == "cosine" and not config.weighting.parameters
    assert [problem.partition(" ")[0] for problem in problems] == [
        f"{file}:",
        f"{file}:",
        "command",
    ]
    with pytest.raises(UserError, match=r"fed\.batch_size"):
        load_config(file)
    file.write_text("weighting: {rule: held_out_gate, parameters: {ridge: 0.5}}")
    right: list[str] = []
    assert load_config(file, TINY, problems=right) == load_config(file, TINY)
    assert right == []
