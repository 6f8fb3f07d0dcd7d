"""Which measure goes with a missing entity, and which layer says where one is."""

import numpy as np
import pytest
import torch

from lib_decouple.lab.model.judge import FoundThing
from lib_decouple.lab.study import causes, layers


def images(n=40):
    """The first half lacks an entity; each measure but the first is noise."""
    rng = np.random.default_rng(2)
    told, *others = causes.MEASURES
    return [
        {
            "seed": k,
            "missing": k < n // 2,
            told: float(k >= n // 2) + 0.01 * k,
            **{name: rng.random() for name in others},
        }
        for k in range(n)
    ]


def test_what_tells_and_what_does_not():
    own = images()
    rows = {row["measure"]: row for row in causes.correlate(2, own)}
    assert list(rows) == list(causes.MEASURES)
    first, *others = rows.values()
    missing = np.array([image["missing"] for image in own], float)
    for name, row in rows.items():
        values = [image[name] for image in own]
        assert row["r"][0] == pytest.approx(np.corrcoef(missing, values)[0, 1])
        assert row["r"][1] <= row["r"][0] <= row["r"][2]
        assert (row["count"], row["n"], row["missing"]) == (2, 40, 0.5)
    # A low value goes with missing in every pair of pictures, in every resample.
    assert first["auc"] == (0, 0, 0)
    assert sum(row["auc"][1] < 0.5 < row["auc"][2] for row in others) >= 6  # of eight; one in 20 intervals misses
    table = causes.as_markdown(list(rows.values()))
    assert f"| 2 | {first['measure']} | 40 | 50.0 |" in table
    assert "| 0.00 [0.00, 0.00] |" in table


def test_measures_are_of_the_weakest_the_widest_and_of_pairs():
    """Two entities on 4x4 cells: one has a corner with 0.8, the other spreads over a row; then both the same place."""
    maps = torch.full((2, 2, 4, 4), 1e-4)
    maps[0, 0, 0, 0] = 0.8
    maps[0, 1, 3, :] = 0.2
    maps[1, :, 0, 0] = 0.8
    found = {name: measure(maps) for name, measure in causes.MEASURES.items()}
    assert found["intensity of the weakest (peak)"].tolist() == pytest.approx([0.2, 0.8])
    apart, together = found["overlap: centre distance"].tolist()
    assert apart == pytest.approx(np.hypot(3 / 4, 1.5 / 4), abs=0.01)  # of the side
    assert together == pytest.approx(0, abs=1e-5)
    for name in ("overlap: IoU, normalised maps", "overlap: IoU, raw maps"):
        assert found[name][1] == pytest.approx(1, abs=1e-4)
        assert found[name][0] < 0.01
    assert found["spread of the widest"][0] > found["spread of the widest"][1]


def test_the_cells_of_a_thing_are_those_whose_centre_it_covers():
    thing = FoundThing("cat", "", 24.0, 40.0, 1.0)
    place = layers.inside(thing, 16, 16)
    y, x = np.nonzero(place)
    middle = np.array([(y.mean() + 0.5) * 8, (x.mean() + 0.5) * 8])
    assert middle == pytest.approx([thing.y, thing.x], abs=4)
    assert place.sum() == pytest.approx(np.pi * layers.RADIUS**2 / 64, rel=0.15)
    assert not layers.inside(FoundThing("cat", "", -200.0, 0.0, 1.0), 16, 16).any()
