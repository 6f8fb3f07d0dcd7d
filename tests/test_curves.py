"""What was learned of a checkpoint is found by the checkpoint's hash."""

from __future__ import annotations

import hashlib
import json

from lib_decouple.core.presence import Curve, Level
from lib_decouple.hosts import curves
from lib_decouple.hosts.checkpoints import CHECKPOINT


def test_the_curve_that_ships_is_of_the_weights_that_ship():
    curve = curves.find(hashlib.sha256(CHECKPOINT.read_bytes()).hexdigest())
    assert curve is not None
    high, low = (curve.probability(score, 0.5) for score in (0.9, 0.05))
    assert low < 0.5 < high
    assert curves.find("0" * 64) is None
    assert curves.find("") is None


def test_a_users_curve_stands_over_what_ships(tmp_path):
    digest = hashlib.sha256(CHECKPOINT.read_bytes()).hexdigest()
    mine = Curve((Level(1.0, 0.5, 7.0),))
    (tmp_path / f"{digest}.json").write_text(json.dumps(curves.as_dict(mine, digest)))
    assert curves.find(digest, tmp_path) == mine
    assert curves.find("0" * 64, tmp_path) is None
