"""What is kept apart by itself, and what is left out and why."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lib_decouple.prompt.entities import suggest
from lib_decouple.prompt.relations import choose

from .score import load, load_relations, score_relations


def told(prompt: str) -> tuple[list[str], dict[str, str]]:
    choice = choose(prompt)
    return [one.text for one in choice.apart], {one.entity.text: one.why() for one in choice.left_out}


@pytest.mark.parametrize(
    ("prompt", "apart", "left_out"),
    [
        ("a cat that looks like a dog", ["cat"], {"dog": "what cat is compared with"}),
        ("a man dressed as a banana and a cow", ["man", "cow"], {"banana": "what man is compared with"}),
        ("an ant as big as a bus and a hen", ["ant", "hen"], {"bus": "what ant is compared with"}),
        ("cats like dogs", ["cats", "dogs"], {}),
        ("a horse as well as a cow", ["horse", "cow"], {}),
        ("a man w/ a hat and a dog w/ collar", ["man", "dog"], {"hat": "worn by man", "collar": "worn by dog"}),
        ("a wolf wearing a scarf", ["wolf"], {"scarf": "worn by wolf"}),
        ("a squire astride a mule", ["squire"], {"mule": "squire is on it"}),
        ("a goat aboard a raft", ["goat"], {"raft": "goat is on it"}),
        ("a man with a hat riding a horse", ["man"], {"hat": "worn by man", "horse": "ridden by man"}),
        ("a girl in a red dress and a dog in the rain", ["girl", "dog"], {"dress": "worn by girl", "rain": "weather"}),
        ("1girl, red dress, cat, city street", ["1girl", "cat"], {"dress": "worn by 1girl", "city street": "scenery"}),
        ("a cat on a sofa and a dog on a rug", ["cat", "dog"], {"sofa": "cat is on it", "rug": "dog is on it"}),
        ("a vase and a clock on a table", ["vase", "clock"], {"table": "clock is on it"}),
        ("a cup of tea next to a cake", ["cup", "cake"], {"tea": "in cup"}),
        ("a bird in a cage, a cat", ["bird", "cat"], {"cage": "bird is in it"}),
        ("a boy holding a kite, a girl with a rose", ["boy", "girl"], {"kite": "held by boy", "rose": "held by girl"}),
        ("a statue of an owl and a fountain", ["statue", "fountain"], {"owl": "what statue shows"}),
        ("a house with a red door and a car", ["house", "car"], {"door": "part of house"}),
        ("an elephant with a giraffe", ["elephant", "giraffe"], {}),
        ("a dog on the left of a car", ["dog", "car"], {}),
        ("a knight in front of a castle", ["knight", "castle"], {}),
        ("a frog and a purple crown", ["frog", "crown"], {}),
        ("a man in a black hat and a man in a white hat", ["man", "man@2"],
         {"black hat": "worn by man", "white hat": "worn by man@2"}),
        ("a mountain, a lake and a valley", [], {"mountain": "scenery", "lake": "scenery", "valley": "scenery"}),
        ("a dragon made of glass and a knight", ["dragon", "knight"], {}),
        ("sweeping leaves with a broom", ["leaves", "broom"], {}),
        ("1girl, raking hay with a fork", ["1girl", "hay"], {"fork": "held by 1girl"}),
        ("a man slicing bread with a knife", ["man", "bread"], {"knife": "held by man"}),
        ("a squire fights an ogre with a club", ["squire", "ogre"], {"club": "held by ogre"}),
        ("a cook hits a pot with a ladle", ["cook", "pot"], {"ladle": "held by cook"}),
        ("onions chopped with a knife", ["onions", "knife"], {}),
        ("a gardener watering roses with a hose", ["gardener", "roses"], {"hose": "held by gardener"}),
        ("a girl brushing a pony with a brush", ["girl", "pony"], {"brush": "held by girl"}),
        ("a monk ironing a flag with an iron", ["monk", "flag"], {"iron": "held by monk"}),
        ("a boy tying a mule with a rope", ["boy", "mule"], {"rope": "held by boy"}),
        ("a monk painting a portrait of a goat with a brush", ["monk", "portrait"],
         {"goat": "in portrait", "brush": "held by monk"}),
        ("painting a gate with a brush", ["gate", "brush"], {}),
        ("1girl, choker, black gloves", ["1girl"], {"choker": "worn by 1girl", "gloves": "worn by 1girl"}),
        ("a pilot, with a hot air balloon above", ["pilot", "hot air balloon"], {}),
        ("1boy, angel wings, sash, monocle", ["1boy"],
         {"angel wings": "part of 1boy", "sash": "worn by 1boy", "monocle": "worn by 1boy"}),
        ("a druid with horns and a hood, elk", ["druid", "elk"], {"horns": "part of druid", "hood": "worn by druid"}),
        ("a broken cup with a handle", ["cup"], {"handle": "part of cup"}),
    ],
)  # fmt: skip
def test_relations(prompt: str, apart: list[str], left_out: dict[str, str]) -> None:
    assert told(prompt) == (apart, left_out)


@given(st.lists(st.sampled_from([case.prompt for case in load()]), max_size=3).map(", ".join) | st.text(max_size=80))
def test_every_thing_is_either_kept_apart_or_left_out(prompt: str) -> None:
    apart, left_out = told(prompt)
    assert sorted([*apart, *left_out]) == sorted(suggest(prompt))


def test_the_labelled_prompts() -> None:
    cases = load_relations()
    assert len(cases) >= 150
    for split, least in (("tuning", 0.95), ("held-out", 0.9)):
        apart, left_out = score_relations(case for case in cases if case.split == split)
        assert apart.f1 >= least, (split, apart)
        assert left_out.f1 >= least, (split, left_out)
