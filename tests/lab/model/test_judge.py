"""The judge of drawn things: what it says of known scenes and how verdicts follow."""

import numpy as np
import pytest

pytest.importorskip("torch")
from lib_decouple.lab.model import judge, scenes
from lib_decouple.lab.model.judge import FoundThing, verdict


def found(*names):
    return [FoundThing(*name.split(), 0.0, 0.0, 1.0) for name in names]


@pytest.mark.parametrize(
    ("seen", "asked", "missing", "extra", "miscoloured"),
    [
        (["cat gray", "dog brown"], [("cat", None), ("dog", None)], (), (), ()),
        (["cat gray"], [("cat", None), ("dog", None)], ("dog",), (), ()),
        (["cat gray", "cat gray"], [("cat", None)], (), ("cat",), ()),
        (["cat gray"], [("cat", None), ("cat", None)], ("cat",), (), ()),
        (["car red"], [("car", "blue")], (), (), ("car",)),
        # Of two cars the one in the colour asked for counts, in whatever order they were found.
        (["car red", "car blue"], [("car", "blue")], (), ("car",), ()),
        (["car red", "car blue"], [("car", None), ("car", "red")], (), (), ()),
        # Colours that changed places are wrong twice, and nothing is missing.
        (["car red", "bow blue"], [("car", "blue"), ("bow", "red")], (), (), ("car", "bow")),
        (["frog green", "apple red"], [("cat", None)], ("cat",), ("frog", "apple"), ()),
        ([], [("cat", "red")], ("cat",), (), ()),
    ],
)
def test_verdicts_follow_from_what_is_there(seen, asked, missing, extra, miscoloured):
    said = verdict(found(*seen), asked)
    assert (said.missing, said.extra, said.miscoloured) == (missing, extra, miscoloured)
    assert said.right == (not (missing or extra or miscoloured))


def test_what_the_judge_does_not_know_is_told():
    with pytest.raises(ValueError, match=r"'cow'.*cat"):
        verdict([], [("cow", None)])
    with pytest.raises(ValueError, match=r"'teal'.*red"):
        verdict([], [("cat", "teal")])
    with pytest.raises(ValueError, match=r"shape \(1, 96, 96, 3\)"):
        judge.look(np.zeros((1, 96, 96, 3), np.uint8))


def test_drawn_scenes_are_judged_as_they_were_drawn():
    """On scenes that nobody picked: error well below what chance or a broken weights file would give."""
    error = judge.measure(("taught",), 180, seed=99)
    assert error["missing"] <= 0.05
    assert error["extra"] <= 0.05
    assert error["reported"] <= 0.02
    assert error["colour"] <= 0.05


def test_what_was_taken_away_is_missing_and_scraps_are_nothing():
    rng = np.random.default_rng(8)
    missed = scraps = 0
    for _ in range(40):
        scene, image = judge.draw(rng, ("taught",), 2, twice=0)
        asked = [(placed.thing, None) for placed in scene]
        state = np.random.default_rng(1)
        alone = scenes.render(scene[:1], state)
        broken = judge.scrap(image, list(scene), rng)
        seen, broken_seen = judge.look(np.stack([alone, broken]))
        missed += asked[1][0] in verdict(seen, asked).missing
        scraps += len(broken_seen) == 1
    assert missed >= 39
    assert scraps >= 34


def test_an_empty_ground_shows_nothing():
    rng = np.random.default_rng(9)
    pictures = np.stack([scenes.render([], rng) for _ in range(40)])
    assert sum(map(len, judge.look(pictures))) == 0


def test_places_are_where_things_were_drawn():
    rng = np.random.default_rng(10)
    distances = []
    for _ in range(40):
        scene, image = judge.draw(rng, ("taught",), 1)
        for thing in judge.look(image[None])[0]:
            distances.append(np.hypot(thing.x - scene[0].x, thing.y - scene[0].y))
    assert np.mean(distances) <= judge.CELL


def test_a_moved_picture_holds_what_it_still_shows_where_it_stands_now():
    rng = np.random.default_rng(11)
    gone = cut = 0
    for _ in range(60):
        scene, image = judge.draw(rng, ("taught",), 3, twice=0)
        kept, part = judge.moved(scene, image, rng)
        assert part.shape == image.shape
        gone += len(scene) - len(kept)
        for placed in kept:
            before = next(one for one in scene if one.thing == placed.thing)
            x, y, was_x, was_y = (int(value) for value in (placed.x, placed.y, before.x, before.y))
            assert np.array_equal(part[y, x], image[was_y, was_x])
            cut += not (placed.size / 2 <= placed.x <= scenes.SCENE - placed.size / 2)
    assert gone
    assert cut


def test_captions_name_what_a_scene_holds_and_nothing_else():
    rng = np.random.default_rng(12)
    scene, _ = judge.draw(rng, ("taught",), 2, twice=0, tinted=1)
    (text, nothing) = judge.captions_of([scene, []], rng)
    assert nothing == ""
    assert all(f"{placed.colour} {placed.thing}" in text for placed in scene)
    assert sum(word in scenes.THINGS for word in text.replace(",", " ").split()) == 2


@pytest.mark.parametrize("redrawn", [None, (100, 100)])
def test_pictures_come_back_from_the_model_with_what_they_held(redrawn):
    """Nine, so that the last one is a part of its own; redrawn by its caption a thing stays where it was."""
    pytest.importorskip("diffusers")
    from lib_decouple.hosts.checkpoints import open_pipeline

    rng = np.random.default_rng(13)
    drawn = [judge.draw(rng, ("taught",), 1, tinted=0) for _ in range(9)]
    images = np.stack([image for _, image in drawn])
    captions = judge.captions_of([scene for scene, _ in drawn], rng)
    back = judge.given_back(open_pipeline(), redrawn)(images, captions)
    assert back.shape == images.shape
    assert back.dtype == np.uint8
    assert not np.array_equal(back, images)
    there = [not verdict(seen, [(scene[0].thing, None)]).missing for (scene, _), seen in zip(drawn, judge.look(back))]
    assert sum(there) >= 8
