"""The list of mutants stays whole as the code changes; mechanical operators do what they say."""

import ast

import pytest

from tests.mutation.areas import AREAS, ENTRIES
from tests.mutation.mutant import PACKAGE, ROOT, Entry
from tests.mutation.operators import mutations

ALL = [(area, entry) for area, entries in ENTRIES.items() for entry in entries]


def described(value: object) -> str:
    return f"{value.file}: {value.edit.old[:40]!r}" if isinstance(value, Entry) else str(value)


@pytest.mark.parametrize("area", ENTRIES)
def test_every_old_text_stands_in_its_file_once(area: str) -> None:
    assert {described(e): e.found() for e in ENTRIES[area] if e.found() != 1} == {}


@pytest.mark.parametrize("area", ENTRIES)
def test_every_mutant_is_other_code_that_parses(area: str) -> None:
    originals = {
        file: ast.dump(ast.parse((PACKAGE / file).read_text(encoding="utf-8")))
        for file in {entry.file for entry in ENTRIES[area]}
    }
    for entry in ENTRIES[area]:
        if entry.found() == 1:
            mutated = ast.dump(ast.parse(entry.mutant(area).source))
            assert mutated != originals[entry.file], entry


def test_every_mutant_has_tests_that_exist() -> None:
    files = {test.partition("::")[0] for _, entry in ALL for test in entry.tests}
    files |= {test for area in AREAS.values() for test in area.tests}
    assert sorted(file for file in files if not (ROOT / "tests" / file).exists()) == []


def test_no_mutant_is_listed_twice() -> None:
    keys = [(entry.file, entry.edit.old, entry.edit.new) for _, entry in ALL]
    assert len(set(keys)) == len(keys)


def test_every_area_has_files() -> None:
    assert [area for area in AREAS if not AREAS[area].all_files()] == []
    assert ENTRIES.keys() == AREAS.keys()


def test_operators_change_one_place_each() -> None:
    source = (
        "def f(a, b):\n"
        '    """3 is not changed here."""\n'
        "    if a < b and not a:\n"
        "        return g(a, b, c=2.5)\n"
        "    raise UserError(1 + 1)\n"
    )
    assert [name for name, _ in mutations(source)] == [
        "3: if a < b and not a: return g(a, b, c=2.5) -> if False: return g(a, b, c=2.5)",
        "3: a < b and not a -> (a < b or not a)",
        "3: a < b -> a <= b",
        "3: not a -> a",
        "4: return g(a, b, c=2.5) -> return None",
        "4: g(a, b, c=2.5) -> g(b, a, c=2.5)",
        "4: g(a, b, c=2.5) -> g(a, b)",
        "4: 2.5 -> 5.0",
    ]
    for _, mutated in mutations(source):
        assert ast.dump(ast.parse(mutated)) != ast.dump(ast.parse(source))
