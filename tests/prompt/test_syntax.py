"""The prompt language: kinds, places and weights, with expectations worked out by hand from A1111's rules."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lib_decouple.prompt.syntax import Dialect, parse, parts, plain, turns, words

SIGNS = "()[]{}|:\\<>#@_$ \n,.'-\u0301é😀0123456789abc"
PIECES = ["cat", "1girl", "(", ")", "[", "]", ":1.3)", ":0.5]", "|", "\\(", "\\", "{", "}", " BREAK ", " AND "]
PIECES += ["<lora:a:1>", "__animal__", "# note\n", ":", "::", " ", "$$", "1e5", ".", "\n", ":1.2.3)", "[a:b:3]"]
PROMPTS = st.one_of(
    st.text(max_size=200),
    st.text(alphabet=SIGNS, max_size=120),
    st.lists(st.sampled_from(PIECES), max_size=30).map("".join),
)


def weights(prompt: str) -> dict[str, float]:
    return {span.text: round(span.weight, 6) for span in words(prompt)}


def kinds(prompt: str) -> list[tuple[str, str]]:
    return [(span.kind, prompt[span.start : span.end]) for span in parse(prompt)]


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("cat", {"cat": 1.0}),
        ("(cat)", {"cat": 1.1}),
        ("(cat:1.3)", {"cat": 1.3}),
        ("( cat : 1.3 )", {"cat": 1.3}),
        ("(cat:-1)", {"cat": -1.0}),
        ("[dog]", {"dog": round(1 / 1.1, 6)}),
        ("((cat))", {"cat": 1.21}),
        ("a (((house:1.3)) [on] a (hill:0.5), sun, (((sky))).", {"a": 1.1, "house": 1.573, "on": 1.0, "hill": 0.55}),
        ("(unbalanced word", {"unbalanced": 1.1, "word": 1.1}),
        ("[[cat", {"cat": round(1 / 1.21, 6)}),
        ("cat) dog]", {"cat": 1.0, "dog": 1.0}),
        ("cat:1.3) dog", {"cat": 1.0, "1.3": 1.0, "dog": 1.0}),
        (r"\(cat\) (dog)", {"cat": 1.0, "dog": 1.1}),
        ("([cat)] dog", {"cat": 1.0, "dog": 1.0}),
        ("(cat AND dog)", {"cat": 1.1, "dog": 1.0}),
        ("(cat:1.2.3) dog", {"cat": 1.1, "1.2": 1.1, "3": 1.1, "dog": 1.0}),
    ],
)
def test_weight_in_force(prompt: str, expected: dict[str, float]) -> None:
    found = weights(prompt)
    assert {word: found[word] for word in expected} == expected


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        (
            "(cat:1.3), dog",
            [("weight", "("), ("word", "cat"), ("weight", ":1.3)"), ("punctuation", ","), ("word", "dog")],
        ),
        ("a BREAK b", [("word", "a"), ("break", "BREAK"), ("word", "b")]),
        ("BREAKFAST", [("word", "BREAKFAST")]),
        ("a :1.5 AND b", [("word", "a"), ("and", ":1.5"), ("and", "AND"), ("word", "b")]),
        ("sand AND SANDAL", [("word", "sand"), ("and", "AND"), ("word", "SANDAL")]),
        (
            "[cat:dog:0.5]",
            [("editing", "["), ("word", "cat"), ("editing", ":"), ("word", "dog"), ("editing", ":0.5]")],
        ),
        ("[cat:5]", [("editing", "["), ("word", "cat"), ("editing", ":5]")]),
        ("[cat::5]", [("editing", "["), ("word", "cat"), ("editing", ":"), ("editing", ":5]")]),
        (
            "[cat|dog]",
            [("alternation", "["), ("word", "cat"), ("alternation", "|"), ("word", "dog"), ("alternation", "]")],
        ),
        ("<lora:my-cat:0.8> cat", [("network", "<lora:my-cat:0.8>"), ("word", "cat")]),
        ("a <3 b", [("word", "a"), ("punctuation", "<"), ("word", "3"), ("word", "b")]),
        ("__animal__ on __place/park__", [("wildcard", "__animal__"), ("word", "on"), ("wildcard", "__place/park__")]),
        ("{cat|dog}", [("choice", "{"), ("word", "cat"), ("choice", "|"), ("word", "dog"), ("choice", "}")]),
        ("{2$$cat|dog}", [("choice", "{2$$"), ("word", "cat"), ("choice", "|"), ("word", "dog"), ("choice", "}")]),
        ("{cat}", [("punctuation", "{"), ("word", "cat"), ("punctuation", "}")]),
        ("cat # a note, (dog\nfox", [("word", "cat"), ("comment", "# a note, (dog"), ("word", "fox")]),
        (r"miku \(vocaloid\)", [("word", "miku"), ("punctuation", "("), ("word", "vocaloid"), ("punctuation", ")")]),
        ("1girl, t-shirt, don't, 1.5", [("word", w) for w in ("1girl", "t-shirt", "don't", "1.5")]),
    ],
)
def test_kinds(prompt: str, expected: list[tuple[str, str]]) -> None:
    found = [(kind, text.lstrip("\\")) for kind, text in kinds(prompt)]
    if all(kind == "word" for kind, _ in expected):
        found = [(kind, text) for kind, text in found if kind == "word"]
    assert found == expected


def test_a_bar_outside_brackets_turns_editing_off_for_its_part() -> None:
    assert "editing" not in [kind for kind, _ in kinds("red | [cat:dog:0.5]")]
    assert "editing" in [kind for kind, _ in kinds("red | blue AND [cat:dog:0.5]")]


def test_editing_may_hold_weights_and_editing() -> None:
    assert weights("[(cat:1.2):[dog:fox:3]:0.5]") == {"cat": 1.2, "dog": 1.0, "fox": 1.0}


def test_brackets_that_are_no_editing_are_weights() -> None:
    assert weights("[cat:dog]") == {"cat": 0.909091, "dog": 0.909091}


def test_parts() -> None:
    prompt = "a cat <lora:x:1> :1.2 AND (a dog:0.7) AND fish:-1"
    assert [(part.text.split(), part.weight) for part in parts(prompt)] == [
        (["a", "cat"], 1.2),
        (["(a", "dog:0.7)"], 1.0),
        (["fish"], -1.0),
    ]
    assert [prompt[part.start : part.end].strip() for part in parts(prompt)][1] == "(a dog:0.7)"
    assert [span.part for span in words(prompt)] == [0, 0, 1, 1, 2]


def test_parts_of_a_plain_prompt_is_the_prompt() -> None:
    (part,) = parts("a cat")
    assert (part.text, part.weight, part.start, part.end) == ("a cat", 1.0, 0, 5)


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("masterpiece, (cat:1.3), [dog] <lora:x:1>", "masterpiece, cat, dog"),
        ("a [cat:dog:0.5] here", "a cat dog here"),
        ("a cat BREAK a dog AND a fox", "a cat\na dog\na fox"),
        (r"miku \(vocaloid\) # note", "miku (vocaloid)"),
        ("(un)(broken)", "unbroken"),
        ("", ""),
    ],
)
def test_plain(prompt: str, expected: str) -> None:
    assert plain(prompt) == expected


def texts(prompt: str, steps: int = 10, **dialect: bool) -> list[str]:
    own = Dialect(**dialect)
    (part,) = parts(prompt, own)
    found = list(turns(part, own, steps))
    assert all(turn.text == "".join(prompt[k] for k in turn.where) for turn in found)
    return [turn.text for turn in found]


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("a [b:3]", ["a ", "a b"]),
        ("[(a:2):3]", ["", "(a:2)"]),
        ("a [b : c : 1] d", ["a b  d", "a  c  d"]),
        ("a[b:[c:d:2]:1]e", ["abe", "ace", "ade"]),
        ("a [b:.5] c", ["a  c", "a b c"]),
        ("[a::0]x", ["x"]),
        ("[a:b:1.0]", ["a"]),
        ("[a:b:11]", ["a"]),
        ("[a:b:-3]", ["b"]),
        ("[a:b:" + "9" * 400 + "]", ["a"]),
        ("[cat|dog|hen]", ["cat", "dog", "hen"]),
        ("[a|[b|c]]", ["a", "c"]),
        ("a [unbalanced", ["a [unbalanced"]),
        ("[" * 500 + "a:b:3" + "]" * 500, ["[" * 499 + "a" + "]" * 499, "[" * 499 + "b" + "]" * 499]),
    ],
)
def test_what_prompt_editing_makes_of_a_prompt_in_ten_steps(prompt: str, expected: list[str]) -> None:
    assert texts(prompt) == expected


def test_the_old_scheduling_takes_numbers_below_one_for_shares() -> None:
    assert texts("[a:b:1.0]", old_scheduling=True) == ["a", "b"]
    assert texts("[a:b:1.0]") == ["a"]


@given(PROMPTS)
def test_texts_of_editing_are_made_of_the_prompt(prompt: str) -> None:
    for part in parts(prompt):
        found = list(turns(part))
        assert all(turn.text == "".join(prompt[k] for k in turn.where) for turn in found)
        assert all(set(turn.where) - {k for one in found[:n] for k in one.where} for n, turn in enumerate(found) if n)


@given(PROMPTS)
def test_any_string_is_covered_in_order_and_without_overlap(prompt: str) -> None:
    end = 0
    for span in parse(prompt):
        assert end <= span.start < span.end
        assert prompt[end : span.start].strip("\\").strip() == ""
        assert span.text == prompt[span.start : span.end]
        end = span.end
    assert prompt[end:].strip("\\").strip() == ""


@given(PROMPTS)
def test_any_string_has_parts_and_a_plain_text(prompt: str) -> None:
    assert len(parts(prompt)) == 1 + sum(span.kind == "and" and span.text == "AND" for span in parse(prompt))
    read = "".join(span.text for span in parse(prompt) if span.kind in ("word", "punctuation"))
    assert "".join(plain(prompt).split()) == "".join(read.split())
