"""How well "tell" knows what is missing, on a run whose truth is made up."""

import json

import pytest

from lib_decouple.__main__ import main
from lib_decouple.core.presence import SCORE, Curve, Level
from lib_decouple.hosts import curves
from lib_decouple.lab.evaluate import tell

from .runs import make_run

CURVE = Curve((Level(2.0, 0.3, 20.0), Level(0.3, 0.5, 20.0)))
"""Present from 0.3 on at sigma 2, from 0.5 on at 0.3."""


@pytest.fixture
def store(tmp_path):
    """Of six plain images the first entity is missing in three: called so in two of them, and in one where it is
    there. Under zebracom every score is high, though one entity is missing."""
    own = make_run(tmp_path / "run", seeds=3)
    images, scores = [], {}
    for row in own.images():
        seed, first = row["seed"], row["entities"][0] in ("cat", "bear")
        gone = {"plain": seed == 0 or (seed == 1 and first), "zebracom": seed == 0 and first}.get(row["arm"])
        low = {"plain": seed == 0 or (seed == 2 and first)}.get(row["arm"], False)
        names = row["entities"]
        readings = [
            {"score": SCORE, "sigma": sigma, "scores": {names[0]: 0.1 if low else 0.9, names[1]: 0.8}}
            for sigma in (2.5, 1.5, 0.6, 0.45)
        ]
        trace = {} if row["arm"] == "quaggaiou" else {"presence": readings}
        images.append({**{k: row[k] for k in row if k != "id"}, "trace": trace})
        scores[row["prompt_id"], row["arm"], seed] = {names[0]: float(not gone), names[1]: 1.0}
    for image in images:
        own.put_image(image)
    keyed = {row["id"]: scores[row["prompt_id"], row["arm"], row["seed"]] for row in own.images()}
    own.put_scores("drawn", keyed)
    own.put_note("judge:drawn", {"source": "", "threshold": 0.5})
    return own


def written(store, tmp_path, *more):
    file = tmp_path / "curve.json"
    file.write_text(json.dumps(CURVE.as_dict()))
    assert main(["evaluate", "tell", str(store.folder), "--curve", str(file), *more]) == 0
    return json.loads((store.folder / "tell.json").read_text())


def test_precision_and_recall_by_hand_arm_by_arm(store, tmp_path, capsys):
    rows = written(store, tmp_path)["rows"]
    assert [(row["arm"], row["level"]) for row in rows] == [
        ("plain", 1.6), ("plain", 0.5), ("zebracom", 1.6), ("zebracom", 0.5),
    ]  # fmt: skip
    for row in rows[:2]:
        assert (row["n"], row["missing"], row["called"]) == (12, 3, 3)
        assert (row["precision"][0], row["recall"][0]) == pytest.approx((2 / 3, 2 / 3))
        assert row["precision"][1] < 2 / 3 < row["precision"][2]
        # of the three that are missing two score 0.1, one 0.9; of the nine others one 0.1, two 0.9 and six 0.8
        pairs = 2 * (8 * 1.0 + 1 * 0.5) + 1 * (2 * 0.5)
        assert row["area"][0] == pytest.approx(pairs / 27)
        assert row["area"][1] < row["area"][0] < row["area"][2]
        assert "rise" not in row
        # by their weakest, of one prompt a picture that is whole (0.1) meets two that are not (0.1 and 0.8), of the
        # other two that are (0.8) meet one that is not (0.1)
        assert row["area_within"][0] == pytest.approx((0.5 + 0 + 2) / 4)
    for row in rows[2:]:
        # plainly the one that is missing had 0.1, as of the others two; three 0.9 and six 0.8
        assert row["area_plain"][0] == pytest.approx((9 + 2 * 0.5) / 11)
        assert row["rise"] == pytest.approx(3 * 0.8 / 12)
        assert row["area_within"] == pytest.approx([0.5] * 3)
        assert row["area_rise"][0] == pytest.approx((2 * 0.5) / 11)
        assert (row["n"], row["missing"], row["called"], row["precision"], row["recall"][0]) == (12, 1, 0, None, 0.0)
    shown = capsys.readouterr().out
    assert "| 2 | plain | 0.5 | 12 | 3 |" in shown
    # Of one prompt alone resamples are all alike.
    assert "| 0.50 [no spread] |" in next(line for line in shown.splitlines() if "| 2 | zebracom | 0.5 |" in line)
    assert (store.folder / "tell.md").read_text().strip() in shown


def test_the_curve_of_the_run_s_checkpoint_is_found(store, tmp_path, capsys):
    assert main(["evaluate", "tell", str(store.folder)]) == 2
    assert "nothing was learned of [0123456789ab]" in capsys.readouterr().err
    folder = store.folder / "curves"
    folder.mkdir()
    (folder / "a.json").write_text(json.dumps(curves.as_dict(CURVE, "0123456789ab" + "c" * 52)))
    assert tell.curve_of(store, None) == CURVE
    assert main(["evaluate", "tell", str(store.folder)]) == 0


def test_what_cannot_be_told_is_said(tmp_path, capsys):
    bare = make_run(tmp_path / "bare")
    assert main(["evaluate", "tell", str(bare.folder)]) == 2
    assert "none here says what is missing" in capsys.readouterr().err
    bare.put_note("judge:drawn", {"source": "", "threshold": 0.5})
    bare.put_scores("drawn", {row["id"]: dict.fromkeys(row["entities"], 1.0) for row in bare.images()})
    file = tmp_path / "curve.json"
    file.write_text(json.dumps(CURVE.as_dict()))
    assert main(["evaluate", "tell", str(bare.folder), "--curve", str(file)]) == 2
    assert "no image has presence scores" in capsys.readouterr().err
