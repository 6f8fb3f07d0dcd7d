"""Soft-TIFA and OWLv2: what is asked, how answers and boxes become scores, and what the libraries themselves say."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers as tf
from PIL import Image

from lib_decouple.lab.evaluate.judges import Missing, Options, named, owlv2, soft_tifa
from lib_decouple.lab.evaluate.judges.base import Item, verdicts
from lib_decouple.lab.evaluate.judges.words import Described, described

from . import checkpoints

pytest.importorskip("inflect")


def picture(seed: int, height: int = 40, width: int = 48) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


@pytest.mark.parametrize(
    ("entity", "noun", "number", "attributes"),
    [
        ("cat", "cat", 1, ()),
        ("a red car", "car", 1, ("red",)),
        ("two small red cars", "cars", 2, ("small", "red")),
        ("3 dogs", "dogs", 3, ()),
        ("one blue apple", "apple", 1, ("blue",)),
        ("her big, fluffy dog", "dog", 1, ("big", "fluffy")),
        ("polar bear", "polar bear", 1, ()),
        ("an orange sports car", "sports car", 1, ("orange",)),
    ],
)
def test_an_entitys_words_are_told_apart(entity: str, noun: str, number: int, attributes: tuple[str, ...]) -> None:
    assert described(entity) == Described(noun, number, attributes)


def test_atoms_ask_for_presence_attributes_and_number() -> None:
    assert [(a.kind, a.question, a.answers) for a in soft_tifa.atoms("two red cars")] == [
        ("presence", "Are there any cars in the image?", ("yes",)),
        ("attribute", "Are the cars red?", ("yes",)),
        ("count", "How many cars are in the image?", ("two", "2")),
    ]
    assert [a.question for a in soft_tifa.atoms("gray elephant")] == [
        "Is there an elephant in the image?",
        "Is the elephant gray?",
    ]
    assert [a.question for a in soft_tifa.atoms("glasses")] == ["Are there any glasses in the image?"]


class Answers:
    """A model whose probabilities of an answer's first word are known."""

    known: dict[str, dict[str, float]] = {  # noqa: RUF012
        "Are there any cars in the image?": {"yes": 0.9, "no": 0.1},
        "Are the cars red?": {"yes": 0.4, "no": 0.5},
        "How many cars are in the image?": {"two": 0.3, "2": 0.2, "three": 0.4},
        "Is there a dog in the image?": {"yes": 0.0, "no": 1.0},
    }

    def first(self, pairs: list[tuple[Any, str]]) -> Any:
        self.words = ["yes", "no", "two", "2", "three"]
        return torch.tensor([[self.known[q].get(word, 0.0) for word in self.words] for _, q in pairs]).log()

    def log_probability(self, first: Any, word: str) -> Any:
        if word not in self.words:
            raise Missing(f"no token for {word!r}")
        return first[:, self.words.index(word)]


def test_known_answers_give_their_geometric_mean() -> None:
    judge = object.__new__(soft_tifa.SoftTifa)
    judge.writer = Answers()  # type: ignore[assignment]
    one, both, none = judge.score(
        [Item(picture(0), "", own) for own in (("two red cars",), ("two red cars", "dog"), ())]
    )
    assert one == pytest.approx({"": (0.9 * 0.4 * 0.5) ** (1 / 3), "two red cars": 0.9})
    assert both == pytest.approx({"": 0.0, "two red cars": 0.9, "dog": 0.0})
    assert none == {}


def test_soft_tifa_is_the_models_own_probability(tmp_path: Path) -> None:
    torch.manual_seed(3)
    folder = checkpoints.llava(tmp_path / "llava")
    (judge,), lacking = named(f"soft-tifa:{folder}", Options())
    assert lacking == []
    (scores,) = judge.score([Item(picture(1), "a red car and a dog", ("red car", "dog"))])
    model = tf.LlavaForConditionalGeneration.from_pretrained(folder).eval()
    processor = tf.AutoProcessor.from_pretrained(folder)
    chances = []
    for question in ("Is there a car in the image?", "Is the car red?", "Is there a dog in the image?"):
        read = processor(images=picture(1), text=f"USER: <image> {question} ASSISTANT:", return_tensors="pt")
        with torch.no_grad():
            probabilities = model(**read).logits[0, -1].softmax(-1)
        ids = [processor.tokenizer.convert_tokens_to_ids(word) for word in ("yes", "Yes")]
        chances.append(float(probabilities[ids].sum()))
    assert scores["red car"] == pytest.approx(chances[0], rel=1e-4)
    assert scores["dog"] == pytest.approx(chances[2], rel=1e-4)
    assert scores[""] == pytest.approx(math.prod(chances) ** (1 / 3), rel=1e-4)
    with pytest.raises(Missing, match="has no token for '2'"):
        verdicts(judge, [Item(picture(1), "two dogs", ("two dogs",))])


@pytest.mark.skipif(not hasattr(tf, "Qwen3VLForConditionalGeneration"), reason="this transformers has no Qwen3-VL")
def test_qwen3_vl_answers_in_a_batch_as_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lib_decouple.lab.evaluate.judges import answers

    torch.manual_seed(4)
    folder = checkpoints.qwen3_vl(tmp_path / "qwen")
    processor = checkpoints.QwenParts()
    monkeypatch.setattr(answers, "load_processor", lambda source, kind: processor)
    (judge,), lacking = named(f"soft-tifa:{folder}", Options())
    assert lacking == []
    items = [
        Item(picture(2), "", ("cat", "red car")),
        Item(picture(3, 64, 32), "", ("dog",)),
        Item(picture(4), "", ("elephant", "bird")),
    ]
    together = judge.score(items)
    for item, own in zip(items, together):
        assert own == pytest.approx(judge.score([item])[0], rel=1e-4)
        assert 0 < own[""] < 1
    model = tf.Qwen3VLForConditionalGeneration.from_pretrained(folder).eval()
    text = processor.apply_chat_template(
        [{"content": [{"type": "text", "text": "Is there a dog in the image?"}]}], add_generation_prompt=True
    )
    with torch.no_grad():
        logits = model(**processor(images=items[1].image, text=text, return_tensors="pt")).logits[0, -1]
    ids = [processor.tokenizer.convert_tokens_to_ids(word) for word in ("yes", "Yes")]
    assert together[1]["dog"] == pytest.approx(float(logits.softmax(-1)[ids].sum()), rel=1e-4)


def test_overlap_is_what_counting_cells_gives() -> None:
    rng = np.random.default_rng(5)
    for _ in range(30):
        a, b = (np.sort(rng.integers(0, 40, (2, 2)), axis=0).ravel() for _ in range(2))
        grids = []
        for x0, y0, x1, y1 in (a, b):
            grid = np.zeros((40, 40), bool)
            grid[y0:y1, x0:x1] = True
            grids.append(grid)
        union = (grids[0] | grids[1]).sum()
        expected = (grids[0] & grids[1]).sum() / union if union else 0.0
        assert owlv2.overlap(tuple(map(float, a)), tuple(map(float, b))) == pytest.approx(expected)


def judged(entities: tuple[str, ...], *boxes: tuple[list[float], list[float]]) -> tuple[dict[str, float], Any]:
    """A picture whose boxes (scores an entity; centre and size) are known."""
    row = torch.tensor([torch.tensor(scores).logit().tolist() + place for scores, place in boxes])
    things = owlv2._things(entities, row)
    judge = object.__new__(owlv2.Owlv2)
    return judge._judged(Item(picture(0), "", entities), things), things


def test_known_boxes_are_counted() -> None:
    left, right, middle = [0.2, 0.5, 0.3, 0.3], [0.8, 0.5, 0.3, 0.3], [0.5, 0.5, 0.2, 0.2]
    near_left = [0.21, 0.5, 0.3, 0.3]
    scores, _ = judged(("cat", "dog"), ([0.8, 0.1], left), ([0.2, 0.6], right), ([0.02, 0.01], middle))
    assert scores == pytest.approx({"": 1.0, "cat": 0.8, "dog": 0.6})
    # The same cat by two boxes is one, another beside it is one too many.
    scores, _ = judged(("cat", "dog"), ([0.8, 0.1], left), ([0.7, 0.1], near_left), ([0.1, 0.6], right))
    assert scores[""] == 1.0
    scores, _ = judged(("cat", "dog"), ([0.8, 0.1], left), ([0.7, 0.1], middle), ([0.1, 0.6], right))
    assert scores[""] == 0.5
    scores, _ = judged(("two cats", "dog"), ([0.8, 0.1], left), ([0.7, 0.1], middle), ([0.1, 0.6], right))
    assert scores[""] == 1.0
    # A mixture is what it resembles most; the other is missing.
    scores, things = judged(("cat", "dog"), ([0.8, 0.7], left), ([0.5, 0.6], near_left))
    assert [entity for entity, _, _ in things] == ["cat"]
    assert scores == pytest.approx({"": 0.5, "cat": 0.8, "dog": 0.0})
    assert scores["dog"] < owlv2.Owlv2.threshold <= scores["cat"]


def test_owlv2_finds_what_transformers_itself_finds(tmp_path: Path) -> None:
    torch.manual_seed(6)
    folder = checkpoints.owlv2(tmp_path / "owl")
    (judge,), lacking = named(f"owlv2:{folder}", Options())
    assert lacking == []
    item = Item(picture(7, 64, 64), "", ("cat", "dog", "red car"))
    (things,) = judge.boxes([item])
    model, processor = tf.Owlv2ForObjectDetection.from_pretrained(folder).eval(), judge.processor
    texts = ["a photo of a cat", "a photo of a dog", "a photo of a red car"]
    read = processor(text=[texts], images=item.image, return_tensors="pt")
    with torch.no_grad():
        output = model(**read)
    name = "post_process_grounded_object_detection"  # since transformers 4.48
    process = getattr(processor, name, None) or processor.post_process_object_detection
    (found,) = process(output, threshold=0.0)
    best = int(found["scores"].argmax())
    assert things[0][0] == item.entities[int(found["labels"][best])]
    assert things[0][1] == pytest.approx(float(found["scores"][best]), abs=1e-5)
    theirs = {
        (item.entities[label], round(score, 4))
        for label, score in zip(found["labels"].tolist(), found["scores"].tolist())
    }
    assert {(entity, round(score, 4)) for entity, score, _ in things} <= theirs
    long = Item(picture(7), "", ("a very big and very old and very slow and very green and very sleepy turtle",))
    assert 0 <= judge.score([long])[0][long.entities[0]] <= 1
    assert judge.score([Item(picture(7), "", ())]) == [{}]
