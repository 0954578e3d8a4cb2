"""The documentation as a site: built strictly, whole, and fetching nothing."""

import re
from pathlib import Path

import pytest
from mkdocs.commands.build import build
from mkdocs.config import load_config

import feddpa_jax
from feddpa_jax.config import describe_fields
from feddpa_jax.federated.method import METHODS
from feddpa_jax.weighting.rule import (
    RULES,
    gives_weights,
    learns,
    of_clients,
    parameters,
    runs_model,
)
from tests.docs.pages import ROOT


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built site; a warning is an error."""
    folder = tmp_path_factory.mktemp("site")
    build(load_config(str(ROOT / "mkdocs.yml"), strict=True, site_dir=str(folder)))
    return folder


def test_pages_fetch_nothing(site: Path) -> None:
    fetches = re.compile(r"<(?:script|img|link)[^>]*(?:src|href)=\"(?:https?:)?//[^>]*>")
    pages = list(site.rglob("*.html"))
    assert len(pages) > 15
    found = [tag for page in pages for tag in fetches.findall(page.read_text())]
    assert [tag for tag in found if 'rel="canonical"' not in tag] == []


def test_every_public_name_is_on_an_api_page(site: Path) -> None:
    text = "".join(page.read_text() for page in (site / "api").rglob("*.html"))
    names = [name for name in feddpa_jax.__all__ if name != "__version__"]
    assert len(names) > 20
    # Registries are values, which have no docstring of their own.
    told = (
        f'id="feddpa_jax.{name}"' in text or f"<code>fd.{name}</code>" in text for name in names
    )
    assert [name for name, is_told in zip(names, told, strict=True) if not is_told] == []


def test_every_field_is_on_the_page_of_the_configuration(site: Path) -> None:
    text = (site / "reference/configuration/index.html").read_text()
    assert [row[0] for row in describe_fields() if f"<code>{row[0]}</code>" not in text] == []


# Other tests of this process may have registered theirs.
OUR_RULES = [name for name in RULES if (RULES[name].__module__ or "").startswith("feddpa_jax.")]
OUR_METHODS = [name for name in METHODS if METHODS[name].build.__module__.startswith("feddpa_jax.")]


def test_every_rule_is_in_the_guide() -> None:
    text = (ROOT / "docs/guides/studying_weighting_rules.md").read_text()
    assert len(OUR_RULES) > 10
    assert [name for name in OUR_RULES if f"`{name}`" not in text] == []
    learned = {
        name for name in OUR_RULES if learns(name) or runs_model(name) or of_clients(RULES[name])
    }
    rows = dict(re.findall(r"^\| `(\w+)` \| (\w+ \|.*) \|$", text, re.MULTILINE))
    assert set(rows) >= learned
    for name in learned:
        assert rows[name].startswith("weights" if gives_weights(name) else "similarities")
        told = dict(re.findall(r"`(\w+)=([\d.]+)`", rows[name]))
        assert told == {key: str(value) for key, value in parameters(RULES[name]).items()}


def test_numbers_of_rules_and_methods_are_true() -> None:
    pages = (ROOT / "README.md", ROOT / "docs/index.md")
    for text in (page.read_text() for page in pages):
        assert (
            f"**Study weighting rules**: a rule is a function; there are {len(OUR_RULES)}." in text
        )
        assert re.search(rf"\*\*Compare methods\*\*: there are \[?{len(OUR_METHODS)}\b", text)
    guide = (ROOT / "docs/guides/studying_weighting_rules.md").read_text()
    assert f"There are {len(OUR_RULES)}." in guide
