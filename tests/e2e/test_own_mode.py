"""A method of one's own with a routed adapter in a mode of its own, through every command."""

import json
import runpy
import shutil
from pathlib import Path

import pytest
import torch

from feddpa_jax.cli.program import main
from feddpa_jax.federated.method import METHODS
from feddpa_jax.files.escape import terminal
from tests.e2e.small_runs import SETTINGS, write_data

pytestmark = pytest.mark.usefixtures("shared_steps")

ROOT = Path(__file__).parents[2]
METHOD = '''
"""One's own adapter beside the frozen global one, shared out by a trained gate."""

import jax

from feddpa_jax.adapters.lora import bank_of
from feddpa_jax.adapters.mix import Term, alone, side_by_side
from feddpa_jax.federated.method import METHODS, Answers, Method, Part, Phase


@METHODS.register(title="Gated", answers_with="gate", modes=("gate",))
def gated(lora):
    def gate(key):
        shapes = {target: (lora.layers, size[0], 2) for target, size in lora.sizes.items()}
        return {t: {"gate": jax.random.normal(key, shape)} for t, shape in shapes.items()}

    def mix(parts):
        return [Term(side_by_side([parts["global"], parts["local"]], parts["router"]))]

    def answers(server, own_C, members):
        shared = bank_of(server["global"])
        routed = side_by_side([shared, own_C["local"]], own_C["router"])
        return Answers(shared, own_C["local"], {"gate": routed})

    return Method(
        parts={
            "global": Part("server", lora.fresh),
            "local": Part("client", lora.fresh),
            "router": Part("client", gate),
        },
        phases=(
            Phase("global", train=("global",), mix=alone("global")),
            Phase("own", train=("local", "router"), mix=mix, beside=("global",)),
        ),
        answers=answers,
    )
'''


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("own")
    (folder / "mine.py").write_text(METHOD)
    data = write_data(folder / "data")
    options = ["--data.path", str(data), *SETTINGS, "--fed.method", f"{folder}/mine.py:gated"]
    options += ["--fed.learning_rate", "0.1", "--fed.rounds", "2"]
    assert main(["train", "--run-dir", str(folder / "run"), *options]) == 0
    return folder / "run"


@pytest.fixture(scope="module")
def exported(run_dir: Path) -> Path:
    out = run_dir.parent / "out"
    assert main(["export", "--run-dir", str(run_dir), "--out", str(out), "--mixed", "0.5"]) == 0
    return out


def test_it_is_trained_and_judged_in_its_own_mode(run_dir: Path, capsys: pytest.CaptureFixture):
    modes = ["--eval.modes", "[global, local, gate, instance]"]
    assert main(["eval", "--run-dir", str(run_dir), *modes]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "gate *" in said
    assert "P, gate minus global: " in said and "TTP, gate minus local: " in said
    summary = json.loads((run_dir / "eval/summary.json").read_text())
    assert summary["answers_with"] == "gate"
    assert list(summary["modes"]) == ["global", "local", "instance", "gate"]
    page = run_dir.parent / "page.html"
    assert main(["report", str(run_dir), "--out", str(page)]) == 0
    assert "gate" in page.read_text()


@pytest.mark.parametrize(
    ("words", "field"),
    [
        (["eval", "--eval.modes", "[gate, gates]"], "eval.modes"),
        (["generate", "--client", "anna", "--prompt", "Hi", "--mode", "gates"], "mode"),
    ],
)
def test_an_unknown_mode_is_refused_before_anything_is_loaded(
    run_dir: Path,
    words: list[str],
    field: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
):
    monkeypatch.setattr("feddpa_jax.run.inputs.load_federation", None)
    assert main([words[0], "--run-dir", str(run_dir), *words[1:]]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{field}: 'gates': " in line
    assert "there are 'base', 'global', 'local', 'fixed', 'instance', 'gate'" in line


def test_a_mode_of_another_method_is_refused_too(tmp_path: Path, capsys: pytest.CaptureFixture):
    words = ["--fed.method", "feddpa_t", "--eval.modes", "[gate]", "--data.path", "none"]
    assert main(["train", "--run-dir", str(tmp_path / "run"), *words]) == 2
    assert "eval.modes: 'gate': feddpa_t has no such mode" in capsys.readouterr().err


@pytest.mark.parametrize("mode", ["Gate", "a-b", "local", "mixed", "../x", ""])
def test_names_that_are_no_modes(mode: str):
    with pytest.raises(ValueError, match="a mode's name is lower-case letters"):
        METHODS.register(modes=(mode,))(lambda lora: None)


def test_the_export_says_all_and_leaks_nothing(run_dir: Path, exported: Path):
    clients = exported / "clients"
    assert {p.name for p in clients.iterdir()} == {
        f"{name}{suffix}" for name in ("anna", "ben") for suffix in ("", "-gate", "-mixed")
    }
    # One's own parts are for their owner alone; the global folder has the global adapter alone.
    private = {p for p in exported.rglob("*.safetensors") if p.stat().st_mode & 0o077 == 0}
    assert private == {*clients.rglob("*.safetensors")}
    names = {p.name for p in (exported / "global").iterdir()}
    assert names == {"README.md", "feddpa.json", "adapter_config.json", "adapter_model.safetensors"}
    # What the gate's experts are is what the other folders hold.
    weights = "adapter_model.safetensors"
    assert (clients / f"anna-gate/expert_0/{weights}").read_bytes() == (
        exported / "global" / weights
    ).read_bytes()
    assert (clients / f"anna-gate/expert_1/{weights}").read_bytes() == (
        clients / "anna" / weights
    ).read_bytes()
    words = ["export", "--run-dir", str(run_dir), "--out", str(exported), "--check"]
    assert main(words) == 0


def test_a_changed_router_is_found(run_dir: Path, exported: Path, tmp_path: Path, capsys):
    copy = Path(shutil.copytree(exported, tmp_path / "copy"))
    place = "clients/ben-gate/router.safetensors"
    shutil.copy(copy / "clients/anna-gate/router.safetensors", copy / place)
    assert main(["export", "--run-dir", str(run_dir), "--out", str(copy), "--check"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert place in line and "differs from the run's; export again" in line


def test_the_example_answers_as_we_do(
    run_dir: Path, exported: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture
):
    words = ["--client", "ben", "--prompt", "ben 1", "--mode", "gate"]
    assert main(["generate", "--run-dir", str(run_dir), *words, "--eval.max_new_tokens", "8"]) == 0
    ours = capfd.readouterr().out.splitlines()
    assert "ben, gate: the method's own adapter of this mode" in ours
    settings = exported / "clients/ben-gate/router.json"
    about = json.loads(settings.read_text())
    kept = settings.read_text()
    settings.write_text(json.dumps({**about, "max_new_tokens": 8}))
    given = ["--export", str(exported), "--adapter", "clients/ben-gate", "--prompt", "ben 1"]
    monkeypatch.setattr("sys.argv", ["routed_adapter.py", *given])
    torch.manual_seed(0)
    runpy.run_path(str(ROOT / "examples/routed_adapter.py"), run_name="__main__")
    settings.write_text(kept)
    theirs = capfd.readouterr().out.splitlines()
    assert terminal(theirs[-1]).strip() == ours[-1].strip()
