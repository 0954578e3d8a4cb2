"""Rounds by client, compared with a set of them for each."""

import numpy as np
import pytest

from feddpa_jax.data.available import ranges_of, read_available
from feddpa_jax.training.participation import Availability, how_many_there, sample_participants
from feddpa_jax.training.timetable import make_timetable
from feddpa_jax.types import UserError, texts_of

# Ranges that meet, overlap, repeat, go over the day's end, and hold a whole day.
SAID = ["0", "1-3,2-5,4", "6,0-1,7", "5-2", "3-2", "7-7,7", "2,2,3"] * 3 + ["5-2"]
ROUNDS = [{0}, {1, 2, 3, 4, 5}, {0, 1, 6, 7}, {0, 1, 2, 5, 6, 7}, set(range(8)), {7}, {2, 3}] * 3
ROUNDS += [ROUNDS[3]]
NAMES = [f"u{number}" for number in range(len(SAID))]


def test_who_is_there():
    table = make_timetable(texts_of(SAID), NAMES, 8)
    for number in range(20):
        wanted = [number % 8 in own for own in ROUNDS]
        assert table.there(number).tolist() == wanted
        some = np.array([9, 2, 2])
        assert table.of(some).there(number).tolist() == [wanted[c] for c in some]
        assert table.counts()[number % 8] == sum(wanted)
    # As of texts that no client has.
    texts, code_C = texts_of(["nothing", *SAID])
    few = make_timetable(texts_of(SAID)._replace(texts=texts, code_C=code_C[1:]), NAMES, 8)
    assert few.counts().tolist() == table.counts().tolist()


def test_the_cohort_is_drawn_from_those():
    availability = Availability(
        "column", period=8, timetable=make_timetable(texts_of(SAID), NAMES, 8)
    )
    ids = np.random.default_rng(0).integers(0, 2**32, len(SAID)).tolist()
    counts = how_many_there(np.array(ids, np.uint32), availability, 0, 11)
    for number in range(11):
        on = [c for c, own in enumerate(ROUNDS) if number % 8 in own]
        every = sample_participants(
            ids, participation=1.0, seed=0, round_number=number, availability=availability
        )
        assert every.tolist() == on and counts[number] == len(on)
        some = sample_participants(
            ids, participation=1.0, cohort=3, seed=0, round_number=number, availability=availability
        )
        order = sample_participants(ids, participation=1.0, seed=0, round_number=number)
        assert len(some) == min(3, len(on)) and set(some.tolist()) <= set(on) <= set(order.tolist())


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("8-17, 20", "8-17,20"),
        (20, "20"),
        ([1, "3-4"], "1,3-4"),
        (None, ""),
        ("", ""),
        (" ", ""),
        ("07", "07"),
    ],
)
def test_values_of_the_column(value: object, text: str):
    assert read_available(value, "here") == text
    assert read_available(text, "here") == text


@pytest.mark.parametrize(
    "value",
    [
        "8-",
        "-8",
        "8--9",
        "1 2",
        "1 - 2 0",
        "a",
        "1,,2",
        ",",
        "1;2",
        1.0,
        -1,
        True,
        [],
        [True],
        [[1]],
        "99999",
    ],
)
def test_other_values_name_no_rounds(value: object):
    with pytest.raises(
        UserError, match=r"here: says that its client is available .* names no rounds"
    ):
        read_available(value, "here")


def test_ranges():
    assert ranges_of("0-9999,3") == [(0, 9999), (3, 3)]
    with pytest.raises(UserError, match="available '8', and round 8 is none of a period of 8"):
        make_timetable(texts_of(["8"]), ["u"], 8)
    with pytest.raises(UserError, match="no record of client 'v' says when"):
        make_timetable(texts_of(["7", ""]), ["u", "v"], 8)
