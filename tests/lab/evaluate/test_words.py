"""English for the judges."""

from __future__ import annotations

import pytest

from lib_decouple.lab.evaluate.judges.words import named, parts, question, with_article

pytest.importorskip("inflect")


@pytest.mark.parametrize(
    ("entity", "asked"),
    [
        ("cat", "is there a cat?"),
        ("apple", "is there an apple?"),
        ("hourglass", "is there an hourglass?"),
        ("unicorn", "is there a unicorn?"),
        ("red car", "is there a red car?"),
        ("glasses", "are there glasses?"),
        ("two dogs", "are there two dogs?"),
        ("people", "are there people?"),
        ("bus", "is there a bus?"),
        ("octopus", "is there an octopus?"),
        ("sheep", "is there a sheep?"),
        ("water", "is there water?"),
        ("the moon", "is there the moon?"),
        ("1girl", "is there a girl?"),
    ],
)
def test_questions_have_the_right_article_and_number(entity: str, asked: str) -> None:
    assert question(entity) == asked


def test_an_entitys_part_of_the_prompt_is_cut_as_attend_and_excite_does() -> None:
    assert parts("a bear and a red balloon", ("bear", "balloon")) == ["a bear", "a red balloon"]
    assert parts("a cat with glasses", ("cat", "glasses")) == ["a cat", "glasses"]
    assert parts("a cat, an apple", ("cat", "apple")) == ["a cat", "an apple"]
    assert parts("a cat and a dog and a bird", ("bird", "dog")) == [with_article("bird"), with_article("dog")]


@pytest.mark.parametrize(
    ("caption", "there", "not_there"),
    [
        ("a puppy and a kitten", ["dog", "cat"], ["lion", "bear"]),
        ("two kitties on a sofa", ["cat", "couch"], ["dog"]),
        ("a man with eyeglasses riding a bicycle", ["glasses", "person", "bike"], ["woman"]),
        ("a tortoise next to an alarm clock", ["turtle", "clock"], ["frog"]),
        ("a polar bear and some mice", ["bear", "mouse"], ["cat"]),
        ("a hot dog and a teddy bear", ["hot dog", "teddy bear"], ["dog", "bear"]),
        ("a cat toy on a dog bed", [], ["cat", "dog"]),
        ("an animal in a room", [], ["cat", "dog"]),
        ("there is no dog, only a cat", ["cat"], ["dog"]),
        ("a bird and a bear", ["bird", "bear"], ["girl", "person"]),
        ("a blue car", ["red car", "car"], ["bus"]),
        ("a lion cub and a foal", ["lion", "horse"], ["dog"]),
        ("", [], ["cat"]),
    ],
)
def test_a_caption_names_by_lemma_synonym_and_kind(caption: str, there: list[str], not_there: list[str]) -> None:
    found = named(caption, tuple(there + not_there))
    assert [entity for entity, seen in found.items() if seen] == there


def test_the_shipped_kinds_are_whole() -> None:
    from lib_decouple.lab.evaluate.judges.words import _kinds

    above, words = _kinds()
    assert len(words) > 50_000
    assert all(0 <= parent < len(above) for own in above for parent in own)
    assert all(0 <= number < len(above) for own in words.values() for number in own)
