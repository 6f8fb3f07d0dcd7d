"""The bundled tokenizer's positions, against those of the text encoder that is given the same text."""

from __future__ import annotations

import pytest

pytest.importorskip("transformers", reason="transformers is not installed")

from lib_decouple.embedded.place import TOKENIZER
from lib_decouple.webui import bundled


@pytest.mark.parametrize("text", ["", "a cat and a dog", "Traffic-lights, 24 café's", "日本 🐱", "it's <b> ☃"])
def test_a_short_prompt_s_tokens_stand_where_the_text_encoder_has_them(text):
    from transformers import CLIPTokenizer

    own = CLIPTokenizer.from_pretrained(TOKENIZER)
    ids = own(text).input_ids[1:-1]
    found = bundled.tokenize(text)
    assert [piece.text for piece in found] == own.convert_ids_to_tokens(ids)
    assert [piece.position for piece in found] == list(range(1, len(ids) + 1))


def test_chunks_end_at_breaks_when_they_are_full_and_behind_a_comma_that_is_near():
    def parse(text):
        return [
            ["a cat", 1.0],
            ["BREAK", -1],
            ["dog " * 80, 1.3],
            ["BREAK", -1],
            ["fox " * 70 + ", bird " + "hen " * 9, 1],
        ]

    found = bundled.tokenize("", parse)
    assert [piece.position for piece in found[:3]] == [1, 2, 78]
    assert all(piece.chunk == piece.position // 77 for piece in found)
    dogs = [piece.position for piece in found if piece.text == "dog</w>"]
    assert dogs == [*range(78, 153), *range(155, 160)]
    places = {piece.text: piece.position for piece in found}
    assert (places["fox</w>"], places[",</w>"], places["bird</w>"]) == (231 + 70, 231 + 71, 308 + 1)
    without = {piece.text: piece.position for piece in bundled.tokenize("", parse, backtrack=0)}
    assert without["bird</w>"] == 231 + 72
