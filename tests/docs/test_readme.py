"""The Python of the README runs as written, but on the tiny model and with less work."""

import ast

import pytest

from tests.docs.pages import ROOT, blocks

# The library's part that the README promises: the calls of the design, in their order.
CALLS = [
    *("load_base", "load_federation", "Config", "Experiment", "rounds"),
    *("weigh", "evaluate", "laboratory", "plot", "export"),
]
# All that is replaced, because SmolLM2 takes minutes.
SMALLER = {
    '"smollm2-135m"': '"tiny"',
    "max_train=24, validation=4, max_test=4": "max_train=6, validation=1, max_test=1",
    "scales=[0.5, 1.0]": "scales=[0.5, 1.0], layers=[2], exact=0",
}


def code() -> str:
    """The README's one block of Python."""
    (text,) = blocks(ROOT / "README.md", "python")
    return text


def test_it_makes_the_calls_of_the_design() -> None:
    called = [
        node.func.attr
        for node in sorted(
            (node for node in ast.walk(ast.parse(code())) if isinstance(node, ast.Call)),
            key=lambda node: (node.lineno, node.col_offset),
        )
        if isinstance(node.func, ast.Attribute)
    ]
    assert [name for name in called if name in CALLS] == CALLS


def test_it_runs(tmp_path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    text = code()
    for told, tried in SMALLER.items():
        assert text.count(told) == 1
        text = text.replace(told, tried)
    found: dict = {}
    exec(compile(text, "README.md", "exec"), found)
    printed = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in printed[:3]] == ["0", "1", "2"]
    assert "similarity" in printed[3]
    assert found["scores"]["nll"]["instance"].ttp.value > 0
    assert found["figure"].axes
    assert (tmp_path / "exports/a/clients/client_0/adapter_model.safetensors").is_file()
