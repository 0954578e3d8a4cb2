"""What `-m quick` selects: something of every area, and tests that there are."""

from pathlib import Path

import pytest

from tests.selection import QUICK_TESTS, ROOT, is_short

TESTS = Path(__file__).parent
# Folders of tests: an area each.
AREAS = sorted({path.parent for path in TESTS.rglob("test_*.py")} - {TESTS})


@pytest.mark.parametrize("area", AREAS, ids=lambda path: str(path.relative_to(TESTS)))
def test_every_area_has_quick_tests(area: Path) -> None:
    named = any((ROOT / name).is_relative_to(area) for name in QUICK_TESTS)
    assert named or any(is_short(path) for path in area.glob("test_*.py"))


@pytest.mark.parametrize("name", sorted(QUICK_TESTS))
def test_a_quick_test_is_there(name: str) -> None:
    file, _, function = name.partition("::")
    assert f"def {function}(" in (ROOT / file).read_text(encoding="utf-8")
