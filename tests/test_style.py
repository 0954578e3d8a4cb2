"""The code's form: formatted, linted, typed, imports one way, no torch, files of readable size."""

import ast
import collections
import functools
import graphlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "feddpa_jax"
MODULES = sorted(PACKAGE.rglob("*.py"))
BENCHMARKS = sorted((ROOT / "benchmarks").rglob("*.py"))
SCRIPTS = sorted([*(ROOT / "launch").glob("*.sh"), ROOT / ".ci/run"])

# Imports go to the same line or to one above it, never to one below.
TIERS = (
    {"short_repr"},
    {"types"},
    {"files"},
    {"progress", "checked_settings", "registry", "hyperparameters"},
    {"quantization"},
    {"devices"},
    {"adapters"},
    {"models"},
    {"hf"},
    {"data"},
    {"training"},
    {"federated"},
    {"inference"},
    {"weighting"},
    {"evaluate"},
    {"config"},
    {"run"},
    {"testing", "plan", "preflight", "report", "laboratory", "export"},
    {"partitioning"},
    {"outcome"},
    {"experiment"},
    {"comparison"},
    {"cli"},
    {"__main__"},
)


def run(*command: str) -> str:
    """What a command says if it fails; empty if it does not."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("JAX_")}
    ran = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    return ran.stdout + ran.stderr if ran.returncode else ""


def unit(module: str) -> str:
    """The folder or file of the package that a dotted module name belongs to."""
    return module.removeprefix("feddpa_jax").removeprefix(".").partition(".")[0]


@functools.cache
def parsed(path: Path) -> tuple[ast.AST, ...]:
    """All nodes of a file."""
    return tuple(ast.walk(ast.parse(path.read_text(), str(path))))


@functools.cache
def imported(path: Path) -> set[str]:
    """The dotted names that a module imports, wherever in its text."""
    found: set[str] = set()
    for node in parsed(path):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def roots(path: Path) -> set[str]:
    """The top-level packages that a module imports."""
    return {name.partition(".")[0] for name in imported(path)}


def imports(path: Path) -> set[str]:
    """The units of the package that a module imports."""
    return {unit(name) for name in imported(path) if name.split(".")[0] == "feddpa_jax"} - {""}


def graph() -> dict[str, set[str]]:
    """The units of the package, and what each imports."""
    units: dict[str, set[str]] = {}
    for path in MODULES:
        name = path.relative_to(PACKAGE).with_suffix("").parts[0]
        if name != "__init__":
            units.setdefault(name, set()).update(imports(path) - {name})
    return units


def test_ruff_format() -> None:
    assert run(sys.executable, "-m", "ruff", "format", "--no-cache", "--check", "--diff", ".") == ""


def test_ruff_check() -> None:
    assert run(sys.executable, "-m", "ruff", "check", "--no-cache", ".") == ""


def test_pyright() -> None:
    assert run(sys.executable, "-m", "pyright", "--pythonpath", sys.executable) == ""


def test_imports_point_one_way() -> None:
    tier = {name: number for number, names in enumerate(TIERS) for name in names}
    units = graph()
    assert sorted(units.keys() - tier.keys()) == [], "these have no place in TIERS yet"
    upward = [
        f"{name} imports {other}"
        for name, others in units.items()
        for other in others
        if tier[other] > tier[name]
    ]
    assert not upward


def test_imports_have_no_cycle() -> None:
    graphlib.TopologicalSorter(graph()).prepare()


def test_the_package_imports_nothing_beside_it() -> None:
    """It is installed alone: benchmarks, examples and tests stay behind."""
    beside = {path.name for path in ROOT.iterdir() if path.is_dir()} - {PACKAGE.name}
    assert "benchmarks" in beside
    found = [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in MODULES
        for name in roots(path) & beside
    ]
    assert not found


def test_nothing_loads_torch_when_imported() -> None:
    """The package never does; a benchmark does once our side's memory has been measured."""
    names = [
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for path in [*MODULES, *BENCHMARKS]
        if path.name != "__main__.py"
    ]
    program = (
        "import importlib, sys\n"
        f"for name in {names!r}: importlib.import_module(name)\n"
        "print(*{'torch', 'transformers', 'peft'} & sys.modules.keys())"
    )
    loaded = subprocess.check_output([sys.executable, "-c", program], cwd=ROOT, text=True)
    assert loaded.strip() == ""


@pytest.mark.parametrize(
    "path", [*MODULES, *BENCHMARKS], ids=lambda path: str(path.relative_to(ROOT))
)
def test_files_are_of_a_readable_size(path: Path) -> None:
    lines = len(path.read_text().splitlines())
    assert lines <= 350


def lines_of_code(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """The lines of a function without its docstring."""
    first, last = function.body[0], function.body[-1]
    described = isinstance(first, ast.Expr) and ast.get_docstring(function) is not None
    text = first.end_lineno - first.lineno + 1 if described and first.end_lineno else 0
    return (last.end_lineno or 0) - function.lineno + 1 - text


def test_functions_are_of_a_readable_size() -> None:
    long = {
        f"{path.relative_to(ROOT)}: {node.name}": lines_of_code(node)
        for path in [*MODULES, *BENCHMARKS]
        for node in parsed(path)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and lines_of_code(node) > 60
    }
    assert long == {}


def test_no_two_files_share_a_name() -> None:
    names = collections.Counter(path.name for path in MODULES if path.name != "__init__.py")
    assert [name for name, count in names.items() if count > 1] == []


def test_only_the_command_line_talks_to_people() -> None:
    """Nothing below it prints, parses arguments, renders tables or ends the process."""
    found = []
    for path in MODULES:
        name = path.relative_to(PACKAGE).as_posix()
        if name.startswith("cli/") or name == "__main__.py":
            continue
        found += [f"{name}: imports {root}" for root in roots(path) & {"argparse", "rich"}]
        called = {ast.unparse(node.func) for node in parsed(path) if isinstance(node, ast.Call)}
        found += [f"{name}: {what}()" for what in called & {"print", "sys.exit", "exit", "input"}]
    assert found == []


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_scripts_parse(path: Path) -> None:
    assert run("bash", "-n", str(path)) == ""
