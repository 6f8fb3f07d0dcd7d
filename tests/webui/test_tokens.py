"""The real CLIP vocabulary, chunked as the hosts do."""

from __future__ import annotations

import re
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lib_decouple.prompt.align import CHUNK, Piece, align
from lib_decouple.prompt.entities import suggest
from lib_decouple.prompt.relations import choose, remembered_choice
from lib_decouple.prompt.syntax import Dialect, remembered_parse
from lib_decouple.webui.tokens import describe
from tests.tiny import TOKENIZER

transformers = pytest.importorskip("transformers", reason="transformers is not installed")
CLIP = transformers.CLIPTokenizer.from_pretrained(TOKENIZER)


def tokenize(text):
    """``my-style`` is a textual inversion of two vectors."""
    found, chunk = [], 0
    for number, section in enumerate(re.split(r"\s*\bBREAK\b\s*", text)):
        ids = []
        for segment in re.split(r"(my-style)|(?<!\\)[()]|:\d\.\d\)", section):
            if segment == "my-style":
                ids += [("", True), ("my-style</w>", True)]
            elif segment:
                ids += [(one, False) for one in CLIP.tokenize(re.sub(r"\\([()])", r"\1", segment))]
        if number:
            chunk += 1
        for k, (piece, embedding) in enumerate(ids):
            own = chunk + k // 75
            found.append(Piece(own * CHUNK + 1 + k % 75, piece, embedding, own))
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


@pytest.mark.parametrize("size", [10_000, 77, 30])
@pytest.mark.parametrize("prompt", ["nice, " * 90 + "cat", "a cat BREAK a dog " * 40, "a [fox:cat:5], " * 60])
def test_chunks_are_those_of_the_encoder_whatever_their_size(size, prompt):
    """10,000: an encoder that reads a text at once, as Anima's, where BREAK is a word like others."""

    def tokenize(text):
        return [Piece(k, token, chunk=k // size) for k, token in enumerate(CLIP.tokenize(text))]

    words = describe(prompt, tokenize)["words"]
    assert {word.chunk for word in words} == {token // size for word in words for token in word.tokens}
    assert all(word.chunk == word.tokens[0] // size for word in words if word.tokens)
    assert max(token for word in words for token in word.tokens) >= 154


def test_a_break_in_small_letters_is_a_word_as_it_is_to_the_hosts():
    """Their ``re_break`` is ``\\s*\\bBREAK\\b\\s*``; it parts the things nevertheless."""
    found = describe("cat break dog BREAK hen", tokenize)
    told = [(w.text, w.kind, w.tokens, w.chunk) for w in found["words"]]
    assert told == [
        ("cat", "word", (1,), 0), ("break", "word", (2,), 0), ("dog", "word", (3,), 0), ("BREAK", "break", (), 0),
        ("hen", "word", (78,), 1),
    ]  # fmt: skip
    assert found["suggested"] == [[0], [2], [4]]


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
    assert sorted([*named, *(one.text for one in found["left_out"])]) == sorted(suggest(prompt))
    assert named == [one.text for one in choose(prompt).apart]


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


def words_chosen(prompt, **given):
    """The names that clicking each suggestion gives, and the words that each means."""
    found = describe(prompt, tokenize, **given)
    again = describe(prompt, tokenize, selected=found["suggested"], **given)
    assert [list(one.words) for one in again["entities"]] == found["suggested"]
    return [one.text for one in again["entities"]]


def test_a_tag_with_its_qualifier_is_dragged_together_and_typed_with_and_without_backslashes():
    prompt = r"kiwi \(bird\), a kiwi \(fruit\), an egg"
    words = words_of(prompt)
    assert [w.text for w in words if w.selectable] == ["kiwi", "bird", "a", "kiwi", "fruit", "an", "egg"]
    fruit = [k for k, w in enumerate(words) if w.text in ("kiwi", "fruit")][1:]
    (one,) = describe(prompt, tokenize, selected=[fruit])["entities"]
    assert (one.text, list(one.words), one.problem) == ("kiwi (fruit)", fruit, "")
    for typed in ("kiwi (fruit)", r"kiwi \(fruit\)", "kiwi_(fruit)"):
        assert chosen(prompt, entities=[typed]) == [(typed, tuple(fruit), "")]


def test_words_of_scripts_without_spaces_are_chosen_by_token_and_typed():
    prompt = "一只猫和一只狗 🐱🐶, แมว"
    words = words_of(prompt)
    assert [w.text for w in words if w.selectable] == [*"一只猫和一只狗", "🐱", "🐶", *"แมว"]
    tokens = {token for w in words for token in w.tokens}
    assert sorted(tokens) == [piece.position for piece in tokenize(prompt)]
    by_text = {w.text: k for k, w in enumerate(words)}
    for typed in "猫狗🐱🐶":
        assert chosen(prompt, entities=[typed]) == [(typed, (by_text[typed],), "")]
    cat = by_text["แ"]
    assert chosen(prompt, entities=["แมว"]) == [("แมว", (cat, cat + 1, cat + 2), "")]
    assert chosen(prompt, selected=[[by_text["猫"]], [cat, cat + 1, cat + 2]]) == [
        ("猫", (by_text["猫"],), ""), ("แมว", (cat, cat + 1, cat + 2), ""),
    ]  # fmt: skip


@pytest.mark.parametrize(
    "prompt", ["cat，dog", "cat、dog", "cat；dog", "【cat】【dog】", "（cat）（dog）", "cat·dog", "cat。dog"]
)
def test_wide_signs_part_words(prompt):
    assert words_chosen(prompt) == ["cat", "dog"]


def test_words_that_brackets_join_for_the_encoder_are_still_two():
    found = describe("(cat)(dog)", tokenize)
    assert [[found["words"][k].text for k in own] for own in found["suggested"]] == [["cat"], ["dog"]]


@pytest.mark.parametrize(
    ("prompt", "dialect", "expected"),
    [
        ("mutual#kiss, cat, dog", Dialect(comments=False), ["cat", "dog"]),
        ("cat #, dog", Dialect(), ["cat"]),
        ("(cat:0), dog", Dialect(), ["dog"]),
        ("(cat:0), dog", Dialect(emphasis="Ignore"), ["cat", "dog"]),
        ("(cat:0) (dog:-1)", Dialect(emphasis="None"), ["cat", "dog"]),
        ("(cat:0), dog, hen", Dialect(emphasis="No norm"), ["dog", "hen"]),
    ],
)
def test_what_the_host_s_settings_make_of_signs(prompt, dialect, expected):
    found = describe(prompt, tokenize, dialect=dialect)
    assert [" ".join(found["words"][k].text for k in own) for own in found["suggested"]] == expected


def test_break_inside_a_weight_is_a_word_as_the_hosts_encode_it():
    assert [w.kind for w in words_of("(cat BREAK dog:1.3)") if w.text == "BREAK"] == ["word"]
    assert [w.kind for w in words_of("(cat BREAK dog:1)") if w.text == "BREAK"] == ["break"]


@pytest.mark.parametrize(
    "word", ["ADDCOL", "ADDROW", "ADDBASE", "ADDCOMM", "AND_PERP", "AND_SALT", "AND_TOPK", "AND_ALIGN_4_8"]
)
def test_keywords_of_other_extensions_are_no_words(word):
    (one,) = (w for w in words_of(f"a cat {word} a dog") if w.text == word)
    assert (one.kind, one.selectable) == ("keyword", False)


PATTERNS = [
    "a red cat and a dog, ", "\\", "[", "(", ")", "]", "[a:b:3] ", "[a:", "a|", "|", ":", "{", "{a|b} ", "a AND ",
    "a BREAK ", '"a" ', "'a ", "#", "<a:1>", "<a:", "__a__ ", "猫 ", "😀", "a-", "a \\(b\\), ", "a AND_PERP ", "no ",
    "(a:1.1) ", "no a, ", "a cat and ", "cat ", "1", "1.", ",", "a'", "a\u0301", "a\n", "_", "a red cat, a blue cat, ",
    "slowly ", "a slowly run ", "no: ", "without: a, ", "neg: a\n", " -a", "   -a", "Tall Zorb ", "dogs excluded, ",
    "can ", "a cat can slowly ", "text: \"a\" ", "\"a\" written ", "negative prompt ", "é ", "a's back ", "people ",
    " ", "[[", "([", "$$", "~", "a @2 ", "w/o ", "man with a hat, ", "a -((a)), ", " one ",
    "a blue and a red ", "zorb and a ", "[red|blue] a ", "a: none, ", "nowhere ", "dogs are not allowed, ", "!a ",
]  # fmt: skip


def operations(do):
    """How many lines of Python it takes of a prompt that nothing is remembered of."""
    remembered_parse.cache_clear()
    remembered_choice.cache_clear()
    count = 0

    def tell(frame, event, argument):
        nonlocal count
        count += 1
        return tell

    before = sys.gettrace()
    sys.settrace(tell)
    try:
        do()
    finally:
        sys.settrace(before)
    return count


def plainly(text):
    words = re.finditer(r"[^\W\d_]+|\d|[^\w\s]+|_+", text)
    return [Piece(1 + k // 75 * 2 + k, word[0].lower() + "</w>") for k, word in enumerate(words)]


@pytest.mark.parametrize("pattern", PATTERNS)
def test_a_prompt_twice_as_long_takes_twice_the_operations(pattern):
    prompts = [
        pattern * (length // len(pattern)) for length in (2000, 4000)
    ]  # of whole patterns: a piece is a new word
    describe(prompts[1], plainly)  # fills what is kept of the lexicon
    once, twice = (operations(lambda: describe(prompt, plainly)) for prompt in prompts)  # noqa: B023
    assert twice < 2.2 * once + 500


def test_a_long_prompt_takes_few_operations_a_word():
    """What is asked at every keystroke: some 210 lines of Python a word. Words do not all differ, as nobody's 10,000
    characters do."""
    prompt = ("a tall wizard with a staff, a small green dragon on a rock, " * 170)[:10_000]
    describe(prompt, plainly)
    assert operations(lambda: describe(prompt, plainly)) < 280 * len(prompt.split())


def test_a_prompt_that_was_read_is_not_read_again():
    """As a click on a chip asks for it: some 110 lines a word, and the same answer."""
    prompt = ("a tall wizard with a staff, a small green dragon on a rock, " * 170)[:10_000]
    told = []
    once = operations(lambda: told.append(describe(prompt, plainly)))
    twice = operations(lambda: told.extend(describe(prompt, plainly) for _ in range(2)))
    assert twice < 1.65 * once
    assert told[0] == told[1] == told[2]


@pytest.mark.parametrize("given", ["entities", "selected"])
def test_many_entities_take_operations_in_proportion(given):
    prompt = "x " * 400
    more = [
        {"entities": ["x y"] * count} if given == "entities" else {"selected": [[k] for k in range(count)]}
        for count in (50, 100)
    ]
    once, twice = (operations(lambda: describe(prompt, plainly, **one)) for one in more)  # noqa: B023
    assert twice < 2.2 * once
    with pytest.raises(ValueError, match=f"{given}: 201 are not allowed; at most 200"):
        describe(prompt, plainly, **{given: [more[0][given][0]] * 201})


@pytest.mark.parametrize(
    "prompt",
    [
        "[a:b:" + "9" * 400 + "]",
        "[" * 500 + "a:b:3]" * 500,
        "[" * 500,
        "(" * 5000,
        "[a:" * 500 + "b" + ":3]" * 500,
        "\ud800 cat",
    ],
)
def test_no_text_is_too_strange(prompt):
    assert describe(prompt, plainly)["words"]


def test_a_word_without_end_is_refused_before_a_tokenizer_sees_it():
    with pytest.raises(ValueError, match="prompt: a word of 301 letters, aaaaaaaaaaaaaaaaaaaa…, is not allowed here"):
        describe("a" * 301, tokenize)
    assert describe("a" * 300, tokenize)["words"]


def test_a_prompt_that_editing_makes_many_of_is_tokenised_within_a_bound():
    read = []
    describe(
        "[" + "|".join(f"w{k}" for k in range(140)) + "] " + "a, " * 3000, lambda text: read.append(len(text)) or []
    )
    assert sum(read) < 3 * 10_000
