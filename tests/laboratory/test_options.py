"""The options of `feddpa weigh`: lists, and limits that keep it finite."""

import argparse
import re

import pytest

from feddpa_jax.cli.weigh import read_options
from feddpa_jax.laboratory.options import Options
from feddpa_jax.types import UserError


def given(**values: str | int) -> argparse.Namespace:
    """The command's arguments, as argparse leaves them."""
    left_out = dict.fromkeys(
        ("rules", "scales", "supports", "layers", "parameters", "keep", "embed_with")
    )
    others = {
        "by": "nll",
        "choose": "client",
        "foreign": "sample",
        "exact": 2,
        "fresh": False,
        "cells": 32_768,
    }
    return argparse.Namespace(**{**left_out, **others, **values})


def test_what_is_left_out_is_the_default():
    assert Options(**read_options(given())) == Options()


def test_lists():
    given_ = given(scales="0,1e6", supports="1,10000", layers="0,3", rules="a, b,a")
    found = Options(**read_options(given_))
    assert (found.scales, found.supports) == ((0.0, 1e6), (1, 10_000))
    assert (found.layers, found.rules) == ((0, 3), ("a", "b"))
    assert found.parameters == {} and found.keep is None and found.embed_with is None
    assert read_options(given(keep="P"))["keep"] == "p"
    assert read_options(given(embed_with="mixed, local"))["embed_with"] == ("mixed", "local")
    with pytest.raises(UserError, match=r"^embed_with: 'mixed,all' is unknown; give some of base"):
        read_options(given(embed_with="mixed,all"))
    tried = read_options(given(parameters="gate: {ridge: [0.01, 1]}"))["parameters"]
    assert tried == {"gate": {"ridge": [0.01, 1]}}


def test_cells():
    with pytest.raises(UserError, match=r"^cells: 99 is not from 100 to 1,000,000,000"):
        read_options(given(cells=99))
    assert read_options(given(cells=100))["cells"] == 100


@pytest.mark.parametrize("text", ["3", "gate: 3", "gate: {ridge: 3}", "gate: {ridge: []}"])
def test_parameters_are_lists_by_rule_and_name(text):
    with pytest.raises(UserError, match=r"^parameters: .* write 'gate: \{ridge"):
        read_options(given(parameters=text))


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("scales", "nan", "is no list of numbers from 0 to 1,000,000"),
        ("scales", "inf", "is no list of numbers from 0 to 1,000,000"),
        ("scales", "1,1e300", "is no list of numbers from 0 to 1,000,000"),
        ("scales", "-1", "is no list of numbers from 0 to 1,000,000"),
        ("supports", "1000000000000", "is no list of numbers from 1 to 10,000"),
        ("supports", "0", "is no list of numbers from 1 to 10,000"),
        ("supports", "1.5", "is no list of numbers from 1 to 10,000"),
        ("supports", "1" * 5000, "is no list of numbers from 1 to 10,000"),
        ("layers", "10001", "is no list of numbers from 0 to 10,000"),
        ("layers", "", "is no list of numbers"),
        ("scales", ",".join(["1"] * 101), "101 numbers are too many; give at most 100"),
    ],
)
def test_refused(name, text, words):
    with pytest.raises(UserError, match=f"^{name}: .*{re.escape(words)}") as error:
        read_options(given(**{name: text}))
    assert len(str(error.value)) < 200
