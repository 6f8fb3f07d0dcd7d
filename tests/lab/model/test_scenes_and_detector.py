from collections import Counter

import numpy as np
import pytest

from lib_decouple.lab.model.detector import judge
from lib_decouple.lab.model.scenes import COLOURS, ENTITIES, GROUND, HELD_OUT_PAIRS, Placed, caption, place, render


def test_a_scene_has_the_colours_of_its_entities_where_they_stand():
    image = render([Placed("cat", 25, 30, 15), Placed("ball", 70, 60, 14)])
    assert image.shape == (96, 96, 3)
    assert image.dtype == np.uint8
    assert tuple(image[30, 25]) == COLOURS["cat"]
    assert tuple(image[60, 70]) == COLOURS["ball"]
    assert tuple(image[5, 90]) == GROUND


def test_placed_entities_keep_apart_and_inside():
    rng = np.random.default_rng(0)
    for _ in range(50):
        scene = place(["cat", "dog", "bear"], rng)
        for i, a in enumerate(scene):
            assert a.radius <= min(a.x, a.y, 96 - a.x, 96 - a.y)
            for b in scene[i + 1 :]:
                assert np.hypot(a.x - b.x, a.y - b.y) > a.radius + b.radius
    with pytest.raises(ValueError, match="entities: 40 do not fit"):
        place(["cat"] * 40, rng)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_drawn_scenes_are_judged_as_they_are(count):
    rng = np.random.default_rng(count)
    for _ in range(60):
        names = [str(e) for e in rng.choice(ENTITIES, size=count, replace=False)]
        assert judge(render(place(names, rng)), names).right


def test_missing_duplicate_unnamed_and_malformed_are_told_apart():
    cat, dog = Placed("cat", 25, 25, 15), Placed("dog", 70, 70, 15)
    assert judge(render([cat]), ["cat", "dog"]).missing == ("dog",)
    assert judge(render([cat]), ["cat", "dog"]).extra == 0
    twice = judge(render([cat, Placed("cat", 25, 70, 15), dog]), ["cat", "dog"])
    assert (twice.missing, twice.extra) == ((), 1)
    stranger = judge(render([cat, dog, Placed("bear", 70, 25, 14)]), ["cat", "dog"])
    assert (stranger.missing, stranger.extra) == ((), 1)
    scrap = render([dog])
    scrap[20:31, 18:29] = COLOURS["cat"]
    judged = judge(scrap, ["cat", "dog"])
    assert judged.missing == ("cat",)
    assert judged.extra == 0
    assert not judged.right
    assert judge(scrap, ["dog"]).extra == 1


def test_the_wrong_silhouette_is_not_the_entity():
    bar = render([])
    bar[45:51, 10:90] = COLOURS["cat"]
    assert judge(bar, ["cat"]).missing == ("cat",)


def test_unknown_entities_are_named():
    with pytest.raises(ValueError, match="named: 'horse' is unknown to the detector"):
        judge(render([]), ["horse"])


def test_captions_forget_the_share_they_claim_and_never_show_a_held_out_pair():
    train = pytest.importorskip("lib_decouple.lab.model.train", reason="diffusers is not installed")
    rng = np.random.default_rng(3)
    said, cut = Counter(), Counter()
    for _ in range(6000):
        drawn = train.sample_entities(rng)
        assert not any(pair <= set(drawn) for pair in HELD_OUT_PAIRS)
        words = train.compose_caption(drawn, rng).replace(",", "").split()
        named = [entity for entity in ENTITIES if entity in words]
        assert set(drawn) <= set(named)
        assert not any(pair <= set(named) for pair in HELD_OUT_PAIRS)
        said[len(named)] += 1
        cut[len(named)] += len(named) > len(drawn)
    assert cut[1] == 0
    assert 0.27 < cut[2] / said[2] < 0.33
    assert 0.25 < cut[3] / said[3] < 0.33


def test_caption_wording():
    assert caption(["cat"]) == "a cat"
    assert caption(["cat", "dog", "bear"]) == "a cat and a dog and a bear"
