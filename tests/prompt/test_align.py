"""Entities to token positions, on tokenisations written out by hand as CLIP makes them."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lib_decouple.prompt.align import EntityConflict, EntityNotFound, Piece, Reading, Word, align, find, place, words


def pieces(text: str, start: int = 1) -> list[Piece]:
    """``por|cup|ine`` is one word of three tokens; spaces part words."""
    tokens = []
    for word in text.split():
        *head, last = word.split("|")
        tokens += [*head, last + "</w>"]
    return [Piece(start + i, token) for i, token in enumerate(tokens)]


PROMPT = pieces("a photo of a por|cup|ine and a cat , a dog and another dog by the traffic light")


@pytest.mark.parametrize(
    ("entity", "expected"),
    [
        ("cat", (10,)),
        ("porcupine", (5, 6, 7)),
        ("PorcuPine", (5, 6, 7)),
        ("dog", (13,)),
        ("dog@1", (13,)),
        ("dog@2", (16,)),
        (" dog @2 ", (16,)),
        ("traffic light", (19, 20)),
        ("traffic-light", (19, 20)),
        ("cats", (10,)),
        ("#5", (5,)),
        ("#5-7", (5, 6, 7)),
    ],
)
def test_find(entity: str, expected: tuple[int, ...]) -> None:
    assert find(entity, PROMPT) == expected


@pytest.mark.parametrize(
    ("text", "entity", "expected"),
    [
        ("two cats and a cat", "cat", (5,)),
        ("two cats", "cat", (2,)),
        ("two cats and a cat", "cat@2", (5,)),
        ("ripe cherries", "cherry", (2,)),
        ("two foxes", "fox", (2,)),
        ("a glass", "glas", None),
        ("1 girl , solo", "1girl", (1, 2)),
        ("a t - shirt", "t-shirt", (2, 3, 4)),
        ("a t - shirt", "tshirt", (2, 3, 4)),
        ("a ca|fÃ©", "café", (2, 3)),
        ("a ca|fÃ©", "cafe\u0301", (2, 3)),
        ("ðŁĺ|Ģ cat", "😀", (1, 2)),
        ("scatter", "cat", None),
        ("cat , dog", "cat dog", None),
    ],
)
def test_words_are_matched_whole(text: str, entity: str, expected: tuple[int, ...] | None) -> None:
    if expected is None:
        with pytest.raises(EntityNotFound):
            find(entity, pieces(text))
    else:
        assert find(entity, pieces(text)) == expected


def test_a_word_may_be_cut_by_a_chunk_border() -> None:
    cut = [Piece(75, "por"), Piece(78, "cup"), Piece(79, "ine</w>"), Piece(80, "cat</w>")]
    assert find("porcupine", cut) == (75, 78, 79)
    assert find("#75-78", cut) == (75, 78)


def test_a_prompt_may_end_within_a_word() -> None:
    assert words([Piece(1, "por"), Piece(2, "cup")])[0].positions == (1, 2)


def test_a_textual_inversion_of_several_vectors_is_one_word() -> None:
    prompt = [Piece(1, "a</w>"), Piece(2, ""), Piece(3, ""), Piece(4, "my-cat01</w>")]
    assert find("my-cat01", prompt) == (2, 3, 4)


def test_not_found_names_the_entity_its_neighbour_and_the_words() -> None:
    with pytest.raises(EntityNotFound) as error:
        find("porcupyne", PROMPT)
    assert str(error.value).startswith('entities: "porcupyne" is not in the prompt; did you mean "porcupine"?')
    assert "a, photo, of, porcupine, and, cat, dog, another, by, the, traffic, light" in str(error.value)


def test_not_found_suggests_phrases_for_phrases() -> None:
    with pytest.raises(EntityNotFound, match='did you mean "traffic light"'):
        find("trafic light", PROMPT)


@pytest.mark.parametrize(
    ("entity", "prompt", "told"),
    [
        ("cat and dog", "a cat and a dog", "cat, dog"),
        ("a cat & the dog", "a cat and a dog", "cat, dog"),
        ("Traffic Light + dog", "a dog by the traffic light", "traffic light, dog"),
        ("fox vs. owl", "a fox and an owl", "fox, owl"),
        ("fox/owl/cat", "an owl and a fox with a cat", "fox, owl, cat"),
    ],
)
def test_things_that_one_entity_joins_are_told_apart(entity, prompt, told) -> None:
    with pytest.raises(EntityNotFound) as error:
        find(entity, pieces(prompt))
    assert f'is not in the prompt; to keep them apart write "{told}".' in str(error.value)


@pytest.mark.parametrize("entity", ["cat and bird", "the", "cat and", "dgo", "cats and dogs"])
def test_where_the_prompt_names_not_each_of_them_nothing_is_said_of_keeping_apart(entity) -> None:
    with pytest.raises(EntityNotFound) as error:
        find(entity, pieces("a cat near a dog"))
    assert "keep them apart" not in str(error.value)
    assert not re.search(r'did you mean "(?:a|the|and|near a|.* (?:a|and|near))"', str(error.value))


@pytest.mark.parametrize(
    ("entity", "prompt"), [("cat", "a dog"), ("cats", "look at a dog"), ("elephant", "the dog"), ("ant", "an owl")]
)
def test_no_word_is_suggested_that_nobody_means(entity, prompt) -> None:
    with pytest.raises(EntityNotFound) as error:
        find(entity, pieces(prompt))
    assert "did you mean" not in str(error.value)


@pytest.mark.parametrize(
    ("entity", "message"),
    [
        ("dog@3", '"dog" occurs 2 times'),
        ("cat@2", '"cat" occurs once'),
        ("#99", "#99.*stand at #1-20"),
        ("#0", "#0.*stand at #1-20"),
        ("zebra", "zebra"),
    ],
)
def test_what_is_not_there(entity: str, message: str) -> None:
    with pytest.raises(EntityNotFound, match=message):
        find(entity, PROMPT)


@pytest.mark.parametrize(("entity", "message"), [("", '"dog@2"'), ("dog@0", "from 1"), ("#7-5", '"#5-7"')])
def test_what_means_nothing(entity: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        find(entity, PROMPT)


def test_an_empty_prompt_has_no_entity() -> None:
    with pytest.raises(EntityNotFound, match="no words"):
        find("cat", [])
    with pytest.raises(EntityNotFound, match="no tokens"):
        find("#1", [])


def test_align_keeps_the_order() -> None:
    assert align(["dog@2", "cat", "traffic light", "dog"], PROMPT) == [(16,), (10,), (19, 20), (13,)]


def test_align_names_both_entities_of_one_occurrence() -> None:
    with pytest.raises(EntityConflict, match=r'"dog" and "Dog" are the same word.*"Dog@2"'):
        align(["dog", "Dog"], PROMPT)
    with pytest.raises(EntityConflict, match='"cat" and "#10"'):
        align(["cat", "#10"], PROMPT)


def test_a_shorter_entity_leaves_the_longer_ones_tokens_alone() -> None:
    prompt = pieces("a traffic light and a light")
    assert align(["light", "traffic light"], prompt) == [(6,), (2, 3)]
    with pytest.raises(EntityConflict, match="traffic light"):
        align(["light", "traffic light"], PROMPT)


def test_missing_entities_can_be_left_out() -> None:
    assert align(["cat", "zebra", "dog"], PROMPT, missing="skip") == [(10,), (), (13,)]


@given(st.text(max_size=30), st.lists(st.text(alphabet="abc-_@#12é </w>\u0301", max_size=8), max_size=20))
def test_any_entity_gives_positions_or_a_named_error(entity: str, tokens: list[str]) -> None:
    prompt = [Piece(i + 1, token) for i, token in enumerate(tokens)]
    try:
        positions = find(entity, prompt)
    except ValueError as error:
        message = str(error)
    else:
        message = ""
    assert message.startswith("entities: ") or list(positions) == sorted(set(positions)) != []


@given(st.lists(st.sampled_from(["cat", "dog", "por|cup|ine", "traffic light", ","]), min_size=1, max_size=12))
def test_every_word_of_a_prompt_is_found_at_each_of_its_places(names: list[str]) -> None:
    prompt = pieces(" ".join(names))
    seen: dict[str, int] = {}
    for word in words(prompt):
        seen[word.text] = seen.get(word.text, 0) + 1
        assert find(f"{word.text}@{seen[word.text]}", prompt) == word.positions


def test_the_pieces_of_a_long_word_are_gone_through_a_few_times_alone():
    """And not once for each of its characters, which no count of Python's lines would show."""
    times = []

    class Pieces(tuple):
        def __iter__(self):
            times.append(len(self))
            return super().__iter__()

    for count in (10, 1000):
        times.clear()
        text = "😀" * count
        word = Word(text, tuple(range(4 * count)), Pieces("ðŁĺĢ" * count))
        letters, owners = word.characters()
        assert (letters, owners[1]) == (text, (4, 5, 6, 7))
        assert 0 < len(times) <= 3


@pytest.mark.parametrize(
    ("texts", "read", "expected"),
    [
        ("a porcupine , a cat", "a por|cup|ine , a cat", [(1,), (2, 3, 4), (5,), (6,), (7,)]),
        # What the encoder lacks has no token, what is alike before and behind keeps its own.
        ("a small porcupine and a cat", "a por|cup|ine and a cat", [(1,), (), (2, 3, 4), (5,), (6,), (7,)]),
        # A word of which a part is otherwise keeps the tokens of the rest.
        ("a porcXpine and a cat", "a por|cup|ine and a cat", [(1,), (2, 3, 4), (5,), (6,), (7,)]),
        ("a cat", "two blue birds on a cat", [(5,), (6,)]),
        ("one two", "", [(), ()]),
    ],
)
def test_words_are_placed_where_the_encoder_has_them(texts: str, read: str, expected: list[tuple[int, ...]]) -> None:
    assert place(texts.split(), Reading(words(pieces(read)))) == expected


def test_a_name_without_the_brackets_of_the_prompt_is_found_where_the_prompt_has_none_such() -> None:
    """As it is suggested where brackets weigh, of a text that is read as it stands."""
    pieces = [
        Piece(k, text) for k, text in enumerate(["saber</w>", "_(</w>", "fate</w>", "),</w>", "dog</w>"], start=1)
    ]
    assert find("saber fate", pieces) == (1, 2, 3)
    assert find("saber (fate", pieces) == (1, 2, 3)


def test_a_word_within_a_longer_one_is_found_behind_it() -> None:
    pieces = [Piece(k, text) for k, text in enumerate(["1</w>", "boy</w>", ",</w>", "a</w>", "boy</w>"], start=1)]
    assert align(["boy", "1boy"], pieces) == align(["1boy", "boy"], pieces)[::-1] == [(5,), (1, 2)]
    with pytest.raises(ValueError, match="are the same word of the prompt"):
        align(["boy", "1boy"], pieces[:2])
