"""Entities' colours."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lib_decouple.webui import palette
from lib_decouple.webui.palette import COLOURS, colours

NAMES = st.lists(st.text(min_size=1, max_size=8), unique_by=str.lower, max_size=12)
SIX = st.lists(st.text(min_size=1, max_size=8), unique_by=str.lower, min_size=1, max_size=len(COLOURS))
fixtures = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(autouse=True)
def forgotten(monkeypatch):
    monkeypatch.setattr(palette, "_remembered", type(palette._remembered)())


@given(NAMES)
@fixtures
def test_no_colour_twice_before_all_are_used(names):
    found = colours(names)
    for start in range(0, len(found), len(COLOURS)):
        own = found[start : start + len(COLOURS)]
        assert len(set(own)) == len(own)
        assert set(own) <= set(COLOURS)


@given(SIX, st.data())
@fixtures
def test_taking_entities_out_or_adding_one_or_another_order_changes_no_other_colour(names, data):
    before = dict(zip(names, colours(names)))
    left = data.draw(st.permutations(names))[: data.draw(st.integers(1, len(names)))]
    assert colours(left) == [before[name] for name in left]
    if len(left) < len(COLOURS):
        more = data.draw(st.text(min_size=9, max_size=9))  # longer than the others
        assert colours([more, *left])[1:] == [before[name] for name in left]


def test_a_name_has_one_colour_whatever_its_case():
    for name in ("man", "dog", "umbrella"):
        assert colours([name]) == colours([name.upper()])


def test_of_two_names_of_one_colour_the_one_shown_last_keeps_it():
    alike = {}
    for number in range(40):
        alike.setdefault(colours([f"name {number}"])[0], []).append(f"name {number}")
    first, second = next(names for names in alike.values() if len(names) > 1)[:2]
    own = colours([second])
    assert colours([first, second])[1:] == own


def test_what_is_remembered_has_an_end():
    for number in range(palette.MOST_NAMES + 50):
        colours([f"name {number}"])
    assert len(palette._remembered) == palette.MOST_NAMES
