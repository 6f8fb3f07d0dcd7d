"""A judge's own error on images whose truth is known."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lib_decouple.__main__ import main
from lib_decouple.lab.evaluate.calibrate import Verdicts, calibration, labelled, scenes
from lib_decouple.lab.evaluate.judges import Options
from lib_decouple.lab.evaluate.judges.base import Item
from lib_decouple.lab.evaluate.judges.detector import Detector


class Scripted:
    """Says what it is told to of each entity, in turn."""

    kind = name = "scripted"
    source = ""

    def __init__(self, said: Sequence[float], threshold: float | None) -> None:
        self.said, self.threshold = iter(said), threshold

    def score(self, items: Sequence[Item]) -> list[dict[str, float]]:
        return [{entity: next(self.said) for entity in item.entities} for item in items]


def truth(present: Sequence[bool]) -> list[tuple[Item, frozenset[str]]]:
    """One image of one entity each."""
    image = Image.new("RGB", (8, 8))
    return [(Item(image, "a cat", ("cat",)), frozenset(["cat"] if there else [])) for there in present]


def test_precision_and_recall_are_of_missing() -> None:
    there = [True, True, True, False, False, False, False, True]
    said = [0.9, 0.4, 0.8, 0.1, 0.2, 0.7, 0.3, 0.6]
    found = calibration(Scripted(said, 0.5), truth(there), batch=3)
    assert found["precision"].value == pytest.approx(3 / 4)  # called missing: one that is there, three that are not
    assert found["recall"].value == pytest.approx(3 / 4)  # 0.7 was let through
    assert found["auc"] == pytest.approx(14 / 16)  # of the 4 x 4 pairs, only 0.7 is above 0.4 and 0.6
    assert not found["chosen"]


def test_auc_counts_pairs() -> None:
    def auc(scores: Sequence[float], missing: Sequence[bool]) -> float:
        return Verdicts(np.array(scores), np.array(missing), np.arange(len(scores))).auc()

    assert auc([0.1, 0.2, 0.8, 0.9], [True, True, False, False]) == 1.0
    assert auc([0.9, 0.1], [True, False]) == 0.0
    assert auc([0.5, 0.5], [True, False]) == 0.5
    assert math.isnan(auc([0.5, 0.6], [True, True]))


def test_the_best_threshold_is_picked_on_one_half_and_measured_on_the_other() -> None:
    there = [True, True, False, False] * 2
    # Even images part at 0.3; of the odd ones, one that is there scores below and is called missing.
    said = [0.4, 0.25, 0.2, 0.1, 0.5, 0.9, 0.1, 0.2]
    found = calibration(Scripted(said, None), truth(there))
    assert found["chosen"]
    assert found["threshold"] == pytest.approx(0.3)
    assert found["precision"].value == pytest.approx(2 / 3)
    assert found["recall"].value == 1.0
    assert found["precision"].images == 3


def test_a_judge_of_chance_shows_as_such() -> None:
    rng = np.random.default_rng(0)
    there = rng.random(600) < 0.7
    found = calibration(Scripted(list(rng.random(600)), 0.5), truth(list(there)))
    assert found["auc"] == pytest.approx(0.5, abs=0.06)
    assert found["precision"].low < 0.3 < found["precision"].high


def test_the_detector_on_scenes() -> None:
    found = calibration(Detector("", Options()), scenes(60))
    assert found["precision"].value == found["recall"].value == found["auc"] == 1.0


def test_a_judge_of_whole_images_has_no_precision() -> None:
    class Whole(Scripted):
        def score(self, items: Sequence[Item]) -> list[dict[str, float]]:
            return [{"": 1.0} for _ in items]

    with pytest.raises(ValueError, match="no score for 'cat'"):
        calibration(Whole([], None), truth([True, False]))


def test_the_command_keeps_other_judges_and_takes_labelled_images(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (item, present), *_ = scenes(1)
    item.image.save(tmp_path / "one.png")
    row = {"file": "one.png", "prompt": item.prompt, "entities": list(item.entities), "present": sorted(present)}
    file = tmp_path / "truth.jsonl"
    file.write_text("\n".join(json.dumps(row) for _ in range(8)), encoding="utf-8")
    (tmp_path / "calibration.json").write_text('{"vqa:other": {}}', encoding="utf-8")
    arguments = ["evaluate", "calibrate", str(tmp_path), "--truth", str(file), "--judges", "detector,clip:./none"]
    assert main(arguments) == 1
    out, err = capsys.readouterr()
    assert "detector: precision of missing" in out
    assert "there is no folder ./none" in err
    report = json.loads((tmp_path / "calibration.json").read_text(encoding="utf-8"))
    assert set(report) == {"vqa:other", "detector"}
    assert report["detector"]["n"] == 8
    assert report["detector"]["threshold"] == 0.5


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("{", "line 2: JSONDecodeError"),
        ('{"file": "none.png", "prompt": "", "entities": [], "present": []}', "line 2: FileNotFoundError"),
        ('{"prompt": ""}', "line 2: KeyError: 'entities'"),
        (
            '{"file": "one.png", "prompt": "", "entities": ["cat"], "present": ["dog"]}',
            "'dog' is present but no entity",
        ),
    ],
)
def test_a_wrong_line_is_told(tmp_path: Path, line: str, told: str) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "one.png")
    good = '{"file": "one.png", "prompt": "a cat", "entities": ["cat"], "present": ["cat"]}'
    (tmp_path / "truth.jsonl").write_text(f"{good}\n{line}\n", encoding="utf-8")
    with pytest.raises(ValueError, match=told):
        labelled(tmp_path / "truth.jsonl")
