"""The judge of drawn things as `evaluate judge` has it, on scenes whose content is known."""

import json

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("torch")
from lib_decouple.lab.evaluate import prompts
from lib_decouple.lab.evaluate.judge import judge_all
from lib_decouple.lab.evaluate.judges import Missing, Options, named, threshold
from lib_decouple.lab.evaluate.judges.base import COLOUR, EXTRA, Item, verdicts
from lib_decouple.lab.evaluate.judges.drawn import _asked
from lib_decouple.lab.evaluate.store import Store
from lib_decouple.lab.model import scenes


def judge():
    (found,), lacking = named("drawn", Options())
    assert lacking == []
    return found


def drawn(*things, seed=0):
    rng = np.random.default_rng(seed)
    return Image.fromarray(scenes.render(scenes.place(list(things), rng), rng))


def shown(*right, wrong=()):
    """Scores of the colours that were asked for."""
    return {f"{COLOUR}{entity}": float(entity in right) for entity in (*right, *wrong)}


def test_entities_are_looked_for_by_noun_and_colour():
    items = [
        Item(drawn(("car", "red"), ("bow", "blue")), "a red car and a blue bow", ("red car", "blue bow")),
        Item(drawn(("car", "red"), ("bow", "blue")), "a blue car and a red bow", ("blue car", "red bow")),
        Item(drawn(("car", "red")), "a red car and a turtle", ("red car", "turtle")),
        Item(drawn(("frog", None), ("crown", None), ("apple", "green")), "a frog and a crown", ("frog", "crown")),
        Item(drawn(("car", "red"), ("car", "blue")), "a red car and a blue car", ("red car", "blue car")),
        Item(drawn(("car", "red"), ("car", "blue")), "two cars", ("two cars",)),
        Item(drawn(("car", "red")), "two cars", ("two cars",)),
    ]
    assert judge().score(items) == [
        {"": 1.0, EXTRA: 0.0, "red car": 1.0, "blue bow": 1.0} | shown("red car", "blue bow"),
        {"": 0.0, EXTRA: 0.0, "blue car": 1.0, "red bow": 1.0} | shown(wrong=("blue car", "red bow")),
        {"": 0.0, EXTRA: 0.0, "red car": 1.0, "turtle": 0.0} | shown("red car"),
        {"": 0.0, EXTRA: 1.0, "frog": 1.0, "crown": 1.0},
        {"": 1.0, EXTRA: 0.0, "red car": 1.0, "blue car": 1.0} | shown("red car", "blue car"),
        {"": 1.0, EXTRA: 0.0, "two cars": 1.0},
        {"": 0.0, EXTRA: 0.0, "two cars": 0.0},
    ]
    assert threshold("drawn") == 0.5


def test_a_colour_may_stand_in_the_prompt_alone():
    """As in Attend-and-Excite's prompts, whose entities are the nouns."""
    image = drawn(("car", "red"), ("bow", "blue"))
    right, swapped, half, none = judge().score(
        [
            Item(image, "a red car and a blue bow", ("car", "bow")),
            Item(image, "a blue car and a Red bow", ("car", "bow")),
            Item(image, "a car and a purple bow", ("car", "bow")),
            Item(image, "a car with a bow", ("car", "bow")),
        ]
    )
    there = {"car": 1.0, "bow": 1.0, EXTRA: 0.0}
    assert right == {**there, "": 1.0} | shown("car", "bow")
    assert swapped == {**there, "": 0.0} | shown(wrong=("car", "bow"))
    assert half == {**there, "": 0.0} | shown(wrong=("bow",))
    assert none == {**there, "": 1.0}


def test_every_coloured_prompt_of_attend_and_excites_is_asked_for_its_colours():
    data = json.loads((prompts.HERE / "attend-excite.json").read_text())
    for name in ("animal-animal", "animal-object", "object-object"):
        for prompt in prompts.built_in(name):
            asked = [each for entity in prompt.entities for each in _asked(entity, prompt.text)]
            assert [thing for thing, _ in asked] == list(prompt.entities)
            colours = [word for word in prompt.text.split() if word in data["colours"]]
            assert [colour for _, colour in asked if colour] == colours
            assert colours or name != "object-object"


@pytest.mark.parametrize(
    ("entity", "words"),
    [("cow", "'cow' is unknown"), ("shiny car", "'shiny' in 'shiny car'"), ("red blue car", "names 2 colours")],
)
def test_what_is_not_drawn_is_told(entity, words):
    with pytest.raises(Missing, match=words):
        verdicts(judge(), [Item(drawn(("cat", None)), "", (entity,))])


def test_a_model_and_another_size_are_told():
    _, lacking = named("drawn:/some/folder", Options())
    assert "takes no model" in lacking[0]
    with pytest.raises(Missing, match=r"shape \(1, 96, 96, 3\)"):
        verdicts(judge(), [Item(Image.new("RGB", (96, 96)), "", ("cat",))])


def test_scores_by_other_weights_or_another_threshold_are_made_anew(tmp_path, capsys):
    store = Store(tmp_path, create=True)
    for n, things in enumerate([["cat", "dog"], ["cat"]]):
        drawn(*((thing, None) for thing in things), seed=n).save(tmp_path / f"{n}.png")
        own = {"prompt": "a cat and a dog", "entities": ["cat", "dog"], "count": 2, "arm": "plain", "seed": 0}
        store.put_image({"prompt_id": str(n), "file": f"{n}.png", **own})
    now = judge()
    assert judge_all(store, now, 8) == 2
    right = store.scores("drawn")
    assert [own["dog"] for own in right.values()] == [1.0, 0.0]
    assert judge_all(store, now, 8) == 0

    for other in ({"source": "weights of yore"}, {"threshold": 0.9}, {"source": ""}):
        store.put_scores("drawn", {1: {"": 0.0, "cat": 0.0, "dog": 0.0}})
        store.put_note("judge:drawn", {"source": now.source, "threshold": now.threshold, **other})
        capsys.readouterr()
        assert judge_all(store, now, 8) == 2
        assert "scores of 2 images by another one" in capsys.readouterr().err
        assert store.scores("drawn") == right
    assert store.notes()["judge:drawn"] == {"source": now.source, "threshold": 0.5}
