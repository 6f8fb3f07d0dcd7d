"""Our reading of prompts against the parser of the WebUI whose folder DECOUPLE_A1111_ROOT or DECOUPLE_FORGE_ROOT names.

Only that file of the WebUI is loaded. A stray bracket or colon that touches a ``[a:b:3]`` is left out: there the
parser's own answer depends on how it settles an ambiguous grammar.
"""

from __future__ import annotations

import importlib.util
import inspect
import os
import random
from pathlib import Path

import pytest

from lib_decouple.prompt import syntax

ROOTS = [root for name in ("A1111", "FORGE") if (root := os.environ.get(f"DECOUPLE_{name}_ROOT"))]
SIGNS = [
    "cat",
    "dog ",
    "(",
    ")",
    "[",
    "]",
    ":1.3)",
    ":0.5]",
    ":3]",
    "|",
    "\\(",
    "\\",
    " BREAK ",
    " AND ",
    "a ",
    ":",
    "::",
]
SIGNS += [" ", "1", ":1e1]", ":.5]", "[a:b:3]", "[x|y]", ": -2 ]", "\n", "(a:-1)", "[::2]", "(a BREAK b:1.3)"]


@pytest.fixture(params=ROOTS or [None])
def parser(request):
    if request.param is None:
        pytest.skip("DECOUPLE_A1111_ROOT or DECOUPLE_FORGE_ROOT names no WebUI")
    pytest.importorskip("lark", reason="the WebUI's parser needs lark")
    spec = importlib.util.spec_from_file_location("prompt_parser", Path(request.param) / "modules" / "prompt_parser.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def weighed(spans):
    """The characters that the encoder reads with their weights; a bar for a chunk's end."""
    return [
        one
        for span in spans
        for one in (
            [("|", 0)]
            if span.kind == "break"
            else [(char, round(span.weight, 6)) for char in span.text if not char.isspace()]
            if span.kind in ("word", "punctuation", "wildcard", "keyword")
            else []
        )
    ]


@pytest.mark.parametrize("seed", range(300))
def test_parts_texts_and_weights_are_the_host_s(parser, seed):
    drawn = random.Random(seed)
    prompt = "q".join(drawn.choice(SIGNS) for _ in range(drawn.randint(1, 10)))
    schedules_of = parser.get_learned_conditioning_prompt_schedules
    has_old = "use_old_scheduling" in inspect.signature(schedules_of).parameters  # not in Neo
    dialect = syntax.Dialect(comments=False, old_scheduling=drawn.random() < 0.3 and has_old)
    indexes, flat, _ = parser.get_multicond_prompt_list([prompt])
    ours = syntax.parts(prompt, dialect)
    assert [part.weight for part in ours] == [weight for _, weight in indexes[0]]
    schedules = schedules_of(list(flat), 10, None, *([dialect.old_scheduling] if has_old else []))
    for (index, _), part in zip(indexes[0], ours):
        theirs = list(dict.fromkeys(text for _, text in schedules[index]))
        texts = [turn.text for turn in syntax.turns(part, dialect, 10)]
        assert texts[0] == theirs[0]
        assert set(texts) <= set(theirs)
        for text in texts:
            read = parser.parse_prompt_attention(text)
            expected = [
                one
                for own, weight in read
                for one in (
                    [("|", 0)]
                    if (own, weight) == ("BREAK", -1)
                    else [(char, round(weight, 6)) for char in own if not char.isspace()]
                )
            ]
            assert weighed(syntax.parse(text, syntax.Dialect(comments=False))) == expected
