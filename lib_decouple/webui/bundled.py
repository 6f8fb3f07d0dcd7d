"""The tokens of a prompt while no model is loaded, by the tokenizer that is shipped with the embedded checkpoint.

Its vocabulary is CLIP's, as in SD 1.x, 2.x and XL; textual inversions are known to a loaded model alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from typing import Any

from ..embedded.place import TOKENIZER
from ..prompt.align import CHUNK, Piece

_COMMA = ",</w>"


def tokenize(
    text: str,
    parse: Callable[[str], Sequence[Sequence[Any]]] = lambda text: [[text, 1.0]],
    backtrack: int = 20,
) -> list[Piece]:
    """The tokens of one ``AND`` part with their positions in a context of 77 tokens a chunk.

    ``parse``: the host's reading of weights, ``[text, weight]`` each, with ``["BREAK", -1]`` where a chunk ends.
    ``backtrack``: a chunk that is full ends behind its last comma where that is at most so many tokens before.
    """
    tokenizer = _tokenizer()
    chunks = _chunks(
        (None if (own, weight) == ("BREAK", -1) else tokenizer.tokenize(own) for own, weight in parse(text)), backtrack
    )
    return [
        Piece(CHUNK * number + k, token, chunk=number)
        for number, chunk in enumerate(chunks)
        for k, token in enumerate(chunk, 1)
    ]


def _chunks(texts: Iterator[list[str] | None], backtrack: int) -> list[list[str]]:
    """Tokens in chunks of at most 75; None begins the next chunk."""
    chunks: list[list[str]] = [[]]
    comma = -1
    for tokens in texts:
        if tokens is None:
            chunks.append([])
            comma = -1
        for token in tokens or ():
            own = chunks[-1]
            if token == _COMMA:
                comma = len(own)
            if len(own) == CHUNK - 2:
                moved = own[comma + 1 :] if token != _COMMA and comma != -1 and len(own) - comma <= backtrack else []
                del own[len(own) - len(moved) :]
                chunks.append(moved)
                comma = -1
            chunks[-1].append(token)
    return chunks


@lru_cache(maxsize=1)
def _tokenizer() -> Any:
    from transformers import CLIPTokenizer

    return CLIPTokenizer.from_pretrained(TOKENIZER)
