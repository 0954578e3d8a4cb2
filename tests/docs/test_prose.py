"""The form of the Markdown pages, and what they name."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

import feddpa_jax
from feddpa_jax.cli.arguments import make_parser
from feddpa_jax.cli.program import COMMANDS as PROGRAM
from feddpa_jax.config import load_config
from tests.docs.pages import PAGES, ROOT, blocks


def prose(page: Path) -> Iterator[str]:
    """The lines of a page that are neither code, nor a table, nor one link alone."""
    inside = False
    for line in page.read_text().splitlines():
        fence = line.startswith("```")
        inside ^= fence
        if not (fence or inside or line.startswith(("|", "![", "    "))):
            yield line


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_prose_is_of_a_readable_width(page: Path) -> None:
    assert [line for line in prose(page) if len(line) > 120] == []


def commands(page: Path) -> Iterator[list[str]]:
    """The arguments of every `feddpa` command in a page's blocks."""
    for block in blocks(page):
        for line in block.replace("\\\n", " ").replace("$method", "fedit").splitlines():
            if re.match(r"\s*(\.venv/bin/)?feddpa ", line):
                yield shlex.split(line, comments=True)[1:]
            elif line.startswith("bash launch/multi_gpu.sh"):
                yield ["train", *shlex.split(line, comments=True)[2:]]


COMMANDS = [
    pytest.param(words, id=f"{page.name}:{' '.join(words)[:60]}")
    for page in PAGES
    for words in commands(page)
]


def test_there_are_commands() -> None:
    assert len(COMMANDS) > 30


@pytest.mark.parametrize("words", COMMANDS)
def test_commands_that_pages_show_are_accepted(words: list[str]) -> None:
    known, overrides = make_parser(PROGRAM).parse_known_args(words)
    config = getattr(known, "config", None)
    assert config is None or (ROOT / config).is_file()
    load_config(config and ROOT / config, overrides)


def test_the_citation_is_of_this_version() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["cff-version"] == "1.2.0"
    assert citation["version"] == feddpa_jax.__version__
    assert {"message", "title", "authors"} <= citation.keys()
