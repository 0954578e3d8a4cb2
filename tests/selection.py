"""Which tests are quick, and which files are long: `costs.json` has the CPU seconds of each file.

`FEDDPA_RECORD_COSTS=1 bash launch/test.sh` measures them anew.
"""

import json
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).parents[1]
COSTS = Path(__file__).with_name("costs.json")
_MEASURED: dict[str, float] = json.loads(COSTS.read_text())
# Files whose tests take no longer are quick, and of the others these tests: every area has some.
_QUICK_SECONDS = 3.0
QUICK_TESTS = {
    "tests/adapters/test_lora.py::test_a_mix_is_what_its_formula_says",
    "tests/adapters/test_lora.py::test_bank_delta_by_hand",
    "tests/benchmarks/test_benchmarks.py::test_losses_are_compared_one_by_one",
    "tests/comparison/test_estimates.py::test_students_interval_by_hand",
    "tests/docs/test_adding.py::test_adding_a_template",
    "tests/e2e/test_commands.py::test_a_run_leaves_what_the_contract_says",
    "tests/models/test_attention.py::test_the_backend_suits_the_device",
    "tests/parity/test_merged.py::test_the_base_alone_is_the_base",
    "tests/plan/test_plan.py::test_collectives_are_read_off_the_text",
    "tests/plan/test_plan.py::test_work_of_many_clients",
    "tests/preflight/test_preflight.py::test_an_example_as_the_model_sees_it",
    "tests/preflight/test_preflight.py::test_lengths_by_hand",
    "tests/quantization/test_quantizing.py::test_the_code_book_is_made_of_normal_quantiles",
    "tests/sharding/test_mesh.py::test_how_a_base_is_split",
    "tests/sharding/test_mesh.py::test_the_average_is_one_all_reduce",
    "tests/test_style.py::test_imports_point_one_way",
    "tests/test_style.py::test_ruff_check",
    "tests/test_style.py::test_ruff_format",
    "tests/training/test_step.py::test_the_loss_is_the_weighted_nll_of_the_responses",
    "tests/weighting/test_rules.py::test_cosine_by_hand",
    "tests/weighting/test_rules.py::test_whitened_by_hand",
}


def name_of(file: Path) -> str:
    """A file's path from the root; of one that lies elsewhere, the whole path."""
    return (file.relative_to(ROOT) if file.is_relative_to(ROOT) else file).as_posix()


def seconds_of(file: Path) -> float:
    """CPU seconds of a file's tests; without end if it was never measured, as it may be long."""
    return _MEASURED.get(name_of(file), float("inf"))


def is_short(file: Path) -> bool:
    """Whether all tests of a file are quick."""
    return seconds_of(file) <= _QUICK_SECONDS


def has_quick_tests(file: Path) -> bool:
    """Whether any test of a file is quick."""
    return is_short(file) or any(test.startswith(f"{name_of(file)}::") for test in QUICK_TESTS)


def record(seconds: Mapping[str, float]) -> None:
    """Writes what each file's tests took."""
    costs = {name: round(spent, 1) for name, spent in sorted(seconds.items())}
    COSTS.write_text(json.dumps(costs, indent=1) + "\n")
