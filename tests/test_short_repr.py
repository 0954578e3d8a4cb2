"""What results say of themselves: a few lines, without the arrays that they hold."""

from typing import Any

import numpy as np
import pytest

import feddpa_jax as fd
from feddpa_jax.federated.method import dual_answers
from feddpa_jax.laboratory.candidates import Candidate
from feddpa_jax.laboratory.findings import Finding

# Values of a few fields each, whose own words are short; and what only computes.
SMALL = {"Estimate", "Example", "Interval", "Progress", "SeedsEstimate", "Turn", "Weight"}
SMALL |= {"Answer", "Config", "Registry", "UserError", "WeightingSettings"}
FUNCTIONS = {"Engine", "Method", "Part", "Phase", "Term"}
# Where it is made, in tests/comparison.
ELSEWHERE = {"Comparison"}


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """An object of each kind, by its kind."""
    base = fd.load_base("tiny", "float32")
    data = fd.load_federation("sample", max_train=3, validation=1, max_test=1)
    config = fd.Config(
        fed={"rounds": 1, "local_epochs": 1},
        eval={"max_new_tokens": 2},
        lora={"rank": 2},
        data={"max_length": 256},
    )
    run = fd.Experiment(base, data, config)
    done = fd.Round(0, run.state, {"loss": 2 / 3, "real_tokens": 10, "seconds": 2.0})
    scores = run.evaluate(modes=["base", "local"], metrics=["nll", "exact_match"])
    folder = tmp_path_factory.mktemp("made") / "people"
    examples = [fd.Example(f"Add {n}.", str(n), task=f"t{n % 2}") for n in range(300)]
    fd.write_population(folder, [(f"u{n % 3}", one) for n, one in enumerate(examples)])
    divided = fd.partition(examples, "iid", clients=4, test=0.1)
    by_metric = {metric: scores[metric]["local"] for metric in scores.metrics}
    finding = Finding(Candidate("best cosine", None, np.zeros((8, 9))), {}, by_metric, {})
    references: Any = None
    found = [
        *(base, data, data.clients[0], run, done, done.state, run.adapters, scores, divided),
        *(scores["nll"]["local"], fd.check(run.config), fd.load_federation(str(folder)).clients),
        fd.Pool(divided.table, 4, 1),
        fd.Lora(lambda key: {}, {"q_proj": (4, 4)}, 2, 8, 16.0, data.names),
        dual_answers(done.state.server, {}, np.arange(8)),
        fd.Evidence(query_BD=np.zeros((3, 4)), support_MD=np.zeros((5, 4))),
        fd.Laboratory(
            (finding,), (), (("cosine", fd.WeightingSettings()),), *({}, "", references, references)
        ),
    ]
    return {type(one).__name__: one for one in found}


def test_no_kind_of_result_is_left_out(results):
    kinds = {name for name in fd.__all__ if isinstance(getattr(fd, name), type)}
    assert kinds - results.keys() == SMALL | FUNCTIONS | ELSEWHERE


def test_results_are_short(results):
    """The number of examples, clients and numbers in them does not matter."""
    for kind, one in results.items():
        text = repr(one)
        assert str(one) == text and text.startswith(f"{kind}(")
        assert len(text) < 600 and text.count("\n") <= 13 and "rray(" not in text


def test_counts_and_main_scores_are_told(results):
    said = {kind: repr(one) for kind, one in results.items()}
    assert said["Federation"] == "Federation(clients=8, test=8, path='sample')"
    assert said["Client"] == "Client(name='client_0', train=2, validation=1)"
    assert said["Population"].startswith("Population(clients=3, examples=300, folder='")
    assert said["Experiment"] == "Experiment(method='feddpa_t', clients=8)"
    assert said["Round"] == "Round(number=0, loss=0.6667, clients=8, tokens=10, seconds=2)"
    # Rank 2 on maps of 32 rows: 2 layers x (32 + 32) x 2 of q, and (32 + 16) x 2 of v.
    assert said["FedState"].startswith("FedState(server={global: 448}, clients=ClientParts(")
    assert said["Adapters"] == "Adapters(clients=8, global_C=448, local_C=3584, scale=8)"
    assert said["Evidence"] == "Evidence(query_BD='float64 [3, 4]', support_MD='float64 [5, 4]')"
    assert said["Pool"].startswith("Pool(examples=300, columns=(instruction, output, input, task,")
    scores = results["Evaluation"]
    head, nll, match = said["Evaluation"].split("\n")
    assert head == "Evaluation(method='feddpa_t', clients=8, instances=8)"
    for metric, line in (("nll", nll), ("exact_match", match)):
        own = scores[metric]["local"]
        assert line.startswith(f"  {metric}: base P ")
        assert line.endswith(f", local P {own.p.value:.4g} TTP {own.ttp.value:.4g}")
    assert nll.partition(": ")[2].rpartition(", ")[2] in said["Laboratory"].replace(
        "nll P", "local P"
    )
    p = scores["nll"]["local"].p
    assert f"P {p.value:.4g} {p.over_instances.brackets(3)}, TTP" in said["Summary"]
    sizes = results["Partition"].statistics
    assert f"clients=4, examples=300, tests={sizes.tests}" in said["Partition"]


def test_problems_are_told_line_by_line():
    found = fd.check(fd.Config(model={"path": "tiny"}, lora={"rank": 99}, fed={"cohort": 9}))
    head, *lines = repr(found).split("\n  ")
    assert head.startswith("Preflight(problems=2, remarks=0")
    for line, problem in zip(lines, found.problems, strict=True):
        assert line.startswith(f"problem: {problem[:80]}") and len(line) <= 100
