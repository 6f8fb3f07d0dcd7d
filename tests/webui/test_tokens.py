"""The real CLIP vocabulary, chunked as the hosts do."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lib_decouple.prompt.align import CHUNK, Piece, align
from lib_decouple.prompt.entities import suggest
from lib_decouple.webui.tokens import describe
from tests.tiny import TOKENIZER

transformers = pytest.importorskip("transformers", reason="transformers is not installed")
CLIP = transformers.CLIPTokenizer.from_pretrained(TOKENIZER)


def tokenize(text):
    """``my-style`` is a textual inversion of two vectors."""
    found, chunk = [], 0
    for number, section in enumerate(re.split(r"\s*\bBREAK\b\s*", text)):
        ids = []
        for segment in re.split(r"(my-style)|[()]|:\d\.\d\)", section):
            if segment == "my-style":
                ids += [("", True), ("my-style</w>", True)]
            elif segment:
                ids += [(one, False) for one in CLIP.tokenize(segment)]
        if number:
            chunk += 1
        for k, (piece, embedding) in enumerate(ids):
            found.append(Piece((chunk + k // 75) * CHUNK + 1 + k % 75, piece, embedding))
        chunk += max(len(ids) - 1, 0) // 75
    return found


def words_of(prompt, **more):
    return describe(prompt, tokenize, **more)["words"]


def test_every_word_has_the_tokens_that_the_host_gives_it():
    words = words_of("a porcupine, 1girl and the dog's café")
    assert {w.text: w.tokens for w in words} == {
        "a": (1,), "porcupine": (2, 3, 4), ",": (5,), "1girl": (6, 7), "and": (8,), "the": (9,), "dog's": (10, 11),
        "café": (12,),
    }  # fmt: skip
    assert all(w.selectable == (w.text != ",") for w in words)


def test_signs_are_what_they_are_and_cannot_be_selected():
    prompt = "(red cat:1.3) <lora:fur:0.5> BREAK dog AND my-style bird :0.7 # a fish"
    words = words_of(prompt)
    assert [(w.text, w.kind) for w in words] == [
        ("(", "weight"), ("red", "word"), ("cat", "word"), (":1.3)", "weight"), ("<lora:fur:0.5>", "lora"),
        ("BREAK", "break"), ("dog", "word"), ("AND", "and"), ("my-style", "embedding"), ("bird", "word"),
        (":0.7", "and"), ("# a fish", "comment"),
    ]  # fmt: skip
    assert [w.text for w in words if w.selectable] == ["red", "cat", "dog", "my-style", "bird"]
    by_text = {w.text: w for w in words}
    assert (by_text["cat"].weight, by_text["dog"].weight) == (1.3, 1.0)
    assert (by_text["dog"].tokens, by_text["dog"].chunk) == ((78,), 1)
    assert (by_text["my-style"].tokens, by_text["my-style"].part, by_text["my-style"].chunk) == ((1, 2), 1, 0)
    assert all(prompt[w.start : w.end] == w.text for w in words)


def test_a_word_behind_75_tokens_is_in_the_next_chunk():
    words = words_of("nice, " * 40 + "cat")
    assert (words[-1].tokens, words[-1].chunk) == ((77 + 6,), 1)


def test_words_of_prompt_editing_have_the_tokens_of_their_own_step():
    words = words_of("a [cat:big fox:5] and cat")
    tokens = [(w.text, w.tokens) for w in words if w.kind == "word"]
    assert tokens == [("a", (1,)), ("cat", (2,)), ("big", (2,)), ("fox", (3,)), ("and", (3,)), ("cat", (4,))]


def test_an_occurrence_is_what_the_entity_s_number_names():
    prompt = "dog-house, a dog and a Dog AND a dog"
    words = words_of(prompt)
    assert [w.occurrence for w in words if w.text.lower() == "dog"] == [2, 3, 4]
    pieces = tokenize("dog-house, a dog and a Dog")
    assert align(["dog@3"], pieces) == [next(w.tokens for w in words if w.text == "Dog")]


@pytest.mark.parametrize(
    "prompt",
    [
        "a photo of an old man walking his dog past a traffic light",
        "masterpiece, best quality, 1girl, holding umbrella, (traffic light:1.2), dog, man, dog",
        "a cat BREAK a fire hydrant AND a cat",
    ],
)
def test_suggestions_are_those_of_the_run(prompt):
    found = describe(prompt, tokenize)
    named = [" ".join(found["words"][k].text for k in own).lower() for own in found["suggested"]]
    assert named == suggest(prompt)


def test_the_total_is_the_host_s():
    assert describe("a porcupine BREAK a dog", tokenize)["tokens"] == len(tokenize("a porcupine BREAK a dog"))
    assert describe("", tokenize) == {
        "words": [], "suggested": [], "left_out": [], "entities": [], "colours": [], "tokens": 0,
    }  # fmt: skip


def chosen(prompt, **given):
    return [(one.text, one.words, one.problem) for one in describe(prompt, tokenize, **given)["entities"]]


def test_typed_entities_are_looked_up_as_a_job_would():
    prompt = "a cat, a traffic light AND a dog"
    assert chosen(prompt, entities=["traffic light", "dog", "#2"]) == [
        ("traffic light", (4, 5), ""), ("dog", (8,), ""), ("#2", (1,), ""),
    ]  # fmt: skip
    (cat, unknown) = chosen(prompt, entities=["cat", "dgo"])
    assert cat == ("cat", (1,), "")
    assert unknown[:2] == ("dgo", ())
    assert 'did you mean "dog"?' in unknown[2]


def test_two_entities_on_one_word_are_told():
    assert all("are the same word" in problem for _, _, problem in chosen("a cat", entities=["cat", "cat"]))


def test_clicked_words_get_names_that_mean_them():
    prompt = "a dog, a red fire hydrant, a dog"
    assert chosen(prompt, selected=[[1], [5, 6], [9]]) == [
        ("dog", (1,), ""), ("fire hydrant", (5, 6), ""), ("dog@2", (9,), ""),
    ]  # fmt: skip
    assert chosen(prompt, selected=[[9]]) == [("dog@2", (9,), "")]
    ((name, words, problem),) = chosen(prompt, selected=[[1, 9]])
    assert words == (1, 9)
    assert name in problem


@pytest.mark.parametrize("index", [-1, 2, 99])
def test_an_index_of_no_selectable_word_is_refused(index):
    with pytest.raises(ValueError, match=f"selected: {index} is not allowed"):
        describe("a cat, dog", tokenize, selected=[[index]])


@given(st.text(st.sampled_from("ab1 ,.()[]:|<>'#-_\\猫é\nANDBREK"), max_size=60) | st.text(max_size=40))
def test_any_prompt_is_described(prompt):
    found = describe(prompt, tokenize)
    end = 0
    for word in found["words"]:
        assert end <= word.start < word.end <= len(prompt)
        assert list(word.tokens) == sorted(set(word.tokens))
        assert not word.selectable or word.occurrence
        end = word.end
    assert all(found["words"][k].selectable for own in found["suggested"] for k in own)
