"""The page of all methods says what the code does: options, defaults, modes, bytes, refusals."""

import functools
import json
import re
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from feddpa_jax.adapters.dual import Adapters
from feddpa_jax.adapters.lora import init_adapter
from feddpa_jax.config import Config, describe_fields
from feddpa_jax.evaluate.modes import available_modes
from feddpa_jax.federated.build import build, options_of
from feddpa_jax.federated.leaves import trains_own
from feddpa_jax.federated.method import METHODS, Lora, Method
from feddpa_jax.federated.shapes import part_shapes
from feddpa_jax.federated.traffic import traffic
from feddpa_jax.hyperparameters import signature
from feddpa_jax.types import UserError
from tests.docs.pages import ROOT

TEXT = (ROOT / "docs/reference/methods.md").read_text()
FED = vars(Config().fed)
# Other tests of this process may have registered theirs.
OURS = [name for name in METHODS if METHODS[name].build.__module__.startswith("feddpa_jax.")]
# SmolLM2-135M's adapted maps by default.
SIZES = {"q_proj": (576, 576), "v_proj": (576, 192)}


def rows(heading: str) -> dict[str, list[str]]:
    """The cells of a table below a heading, by the name in its first column."""
    own = TEXT.split(f"{heading}\n", 1)[1].split("\n#", 1)[0]
    lines = re.findall(r"^\| `([\w.]+)` \|(.*)\|$", own, re.MULTILINE)
    return {name: [cell.strip() for cell in rest.split(" | ")] for name, rest in lines}


METHOD_ROWS, FIELD_ROWS = rows("# Methods"), rows("### For any method")


def section(name: str) -> str:
    """What the page says of one method."""
    return TEXT.split(f"### `{name}`\n", 1)[1].split("\n#", 1)[0]


def lora(layers: int = 30, rank: int = 8) -> Lora:
    """Of eight clients."""
    fresh = functools.partial(init_adapter, sizes=SIZES, layers=layers, rank=rank)
    return Lora(fresh, SIZES, layers, rank, 16.0, tuple(f"client_{k}" for k in range(8)))


def made(name: str, layers: int = 30, **fields: Any) -> Method:
    """The method with its default options."""
    return build(name, lora(layers), {**FED, **fields}, {})


def shown(value: Any) -> str:
    """A default as the page writes it."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def options(name: str) -> dict[str, str]:
    """A method's own options and their defaults."""
    return {key: shown(value) for key, value in options_of(METHODS[name], FED).items()}


def test_every_method_is_on_the_page() -> None:
    assert set(METHOD_ROWS) == set(OURS)
    assert {len(cells) for cells in METHOD_ROWS.values()} == {8}
    assert f"There are {len(OURS)};" in TEXT
    assert re.findall(r"^### `(\w+)`$", TEXT, re.MULTILINE) == list(METHOD_ROWS)


@pytest.mark.parametrize("name", OURS)
def test_options_stand_with_their_defaults(name: str) -> None:
    cell = METHOD_ROWS[name][6]
    assert dict(re.findall(r"`(\w+)=([^`]+)`", cell)) == options(name)
    assert ("none" in cell) == (not options(name))
    told = section(name)
    for option, default in options(name).items():
        assert re.search(rf"`{option}` \(`{re.escape(default)}`\)", told), option
    asked = [field for field in signature(METHODS[name].build) if field in FED]
    assert [field for field in asked if f"`fed.{field}`" not in told] == []
    assert ("`lora.ranks`" in told) == METHODS[name].ranks


@pytest.mark.parametrize("name", OURS)
def test_papers_are_those_of_the_files(name: str) -> None:
    papers = re.findall(r"\[([\d.]+)\]\(https://arxiv.org/abs/\1\)", METHOD_ROWS[name][0])
    source = sys.modules[METHODS[name].build.__module__].__doc__ or ""
    assert (papers == []) == ("arXiv" not in source)
    assert all(paper in source for paper in papers)


@pytest.mark.parametrize("name", OURS)
def test_modes_are_those_that_it_answers_in(name: str) -> None:
    method, cell = made(name, layers=1), METHOD_ROWS[name][5]
    shapes, count = part_shapes(method), 8

    def zeros(part: str, *lead: int) -> Any:
        return jax.tree.map(lambda leaf: jnp.zeros((*lead, *leaf.shape), leaf.dtype), shapes[part])

    server = {part: zeros(part) for part, own in method.parts.items() if own.scope == "server"}
    own_C = {part: zeros(part, count) for part in method.parts if part not in server}
    found = method.answers(server, own_C, np.arange(count))
    modes = available_modes(Adapters(found.global_C, found.local_C, 1.0, found.others))
    assert tuple(cell.replace("*", "").split(", ")) == modes
    assert re.findall(r"\*\*(\w+)\*\*", cell) == [METHODS[name].answers_with]


@pytest.mark.parametrize("name", OURS)
def test_bytes_are_those_of_two_rounds(name: str) -> None:
    def moved(name: str) -> np.ndarray:
        method, members = made(name), np.arange(8)
        phases = [method.phases_of(number, 20) for number in (0, 1, 2)]
        return np.mean(
            [traffic(method, lora(), phases[k], members, phases[k - 1]) for k in (1, 2)], axis=0
        )

    told = [float(text) for text in METHOD_ROWS[name][7].split(" / ")]
    np.testing.assert_allclose(told, moved(name) / moved("fedit"), atol=0.0051)


def test_fields_for_any_method_stand_with_their_defaults() -> None:
    known = {name: default for name, _, default, _ in describe_fields()}
    assert {name: cells[0] for name, cells in FIELD_ROWS.items()} == {
        name: f"`{known[name]}`" for name in FIELD_ROWS
    }
    assert json.loads(known["fed.server_optimizer"]) == "none"


def test_refusals_are_those_of_the_code() -> None:
    def told(field: str) -> set[str]:
        return {name for name in re.findall(r"`(\w+)`", FIELD_ROWS[field][2]) if name in OURS}

    def refuses(name: str, **fields: Any) -> bool:
        try:
            made(name, **fields)
        except UserError:
            return True
        return False

    assert told("fed.server_optimizer") == {
        name for name in OURS if refuses(name, server_optimizer="momentum")
    }
    assert told("fed.proximal") == {name for name in OURS if refuses(name, proximal=1.0)}
    assert told("fed.early_stopping") == {
        name for name in OURS if not any(trains_own(made(name), p) for p in made(name).phases)
    }
    assert told("lora.ranks") == {name for name in OURS if METHODS[name].ranks}
