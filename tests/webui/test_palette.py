"""Entities' colours."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from lib_decouple.webui.palette import COLOURS, colours

NAMES = st.lists(st.text(min_size=1, max_size=8), unique_by=str.lower, max_size=12)


@given(NAMES, st.text(min_size=1, max_size=8))
def test_a_further_entity_changes_no_colour(names, one):
    assert colours([*names, one])[: len(names)] == colours(names)


@given(NAMES)
def test_no_colour_twice_before_all_are_used(names):
    found = colours(names)
    for start in range(0, len(found), len(COLOURS)):
        own = found[start : start + len(COLOURS)]
        assert len(set(own)) == len(own)


def test_an_entity_has_its_own_colour_alone_and_among_others():
    for name in ("man", "dog", "umbrella"):
        assert colours([name]) == colours([name.upper()])
    man, dog, umbrella = colours(["man", "dog", "umbrella"])
    assert colours(["dog", "umbrella"]) == [dog, umbrella]
    assert colours(["umbrella", "man"]) == [umbrella, man]
