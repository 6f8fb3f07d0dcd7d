"""A judge's own error on images whose truth is known."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lib_decouple.__main__ import main
from lib_decouple.core.presence import SCORE, read
from lib_decouple.hosts import curves
from lib_decouple.lab.evaluate.backends.base import TOLD_AT
from lib_decouple.lab.evaluate.backends.embedded import Embedded
from lib_decouple.lab.evaluate.calibrate import Verdicts, calibration, labelled, scenes
from lib_decouple.lab.evaluate.judges import Options
from lib_decouple.lab.evaluate.judges.base import Item
from lib_decouple.lab.evaluate.judges.drawn import DrawnJudge
from lib_decouple.lab.evaluate.plan import BackendPart, Job, Sampling
from lib_decouple.lab.evaluate.prompts import Prompt
from lib_decouple.lab.evaluate.store import Store
from lib_decouple.settings import Settings


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


def test_the_judge_of_drawn_things_on_scenes() -> None:
    found = calibration(DrawnJudge("", Options()), scenes(60))
    assert min(found[name].value for name in ("precision", "recall")) >= 0.95
    assert found["auc"] >= 0.97


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
    arguments = ["evaluate", "calibrate", str(tmp_path), "--truth", str(file), "--judges", "drawn,clip:./none"]
    assert main(arguments) == 1
    out, err = capsys.readouterr()
    assert "drawn: precision of missing" in out
    assert "there is no folder ./none" in err
    report = json.loads((tmp_path / "calibration.json").read_text(encoding="utf-8"))
    assert set(report) == {"vqa:other", "drawn"}
    assert report["drawn"]["n"] == 8
    assert report["drawn"]["threshold"] == 0.5


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


def told_run(
    folder: Path, seed: int = 0, images: int = 200, checkpoint: str = "", drafted: bool = False,
    score: str | None = SCORE,
) -> Store:  # fmt: skip
    """A finished run of scripted presence: a whole entity peaks high below noise level 2, a missing one nowhere."""
    rng, store = np.random.default_rng(seed), Store(folder, create=True)
    for number in range(images):
        there = rng.random(2) < 0.7
        readings = [
            {
                **({"score": score} if score else {}),
                "sigma": sigma,
                "scores": {
                    name: float(rng.normal(0.2 + (0.3 if own and sigma < 2 else 0), 0.08))
                    for name, own in zip(("cat", "dog"), there)
                },
            }
            for sigma in (3.0, 1.5, 0.5)
        ]
        image = store.put_image(
            {
                "prompt_id": str(number), "prompt": "a cat and a dog", "entities": ["cat", "dog"], "count": 2,
                "arm": "plain", "seed": number, "file": f"{number}.png", "checkpoint": checkpoint,
                "trace": {"presence": readings, **({"draft": readings[1]["scores"]} if drafted else {})},
            }
        )  # fmt: skip
        store.put_scores("drawn", {image: dict(zip(("cat", "dog"), map(float, there)))})
    return store


def test_a_curve_is_learned_from_a_run_and_told_by_from_then_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights, webui = tmp_path / "mine.safetensors", tmp_path / "webui"
    weights.write_bytes(b"weights")
    webui.mkdir()
    digest = hashlib.sha256(b"weights").hexdigest()
    told_run(tmp_path / "run", checkpoint=digest[:10])
    folder = webui / "attention-decoupling" / "curves"
    assert curves.find(digest, folder) is None
    command = ["evaluate", "calibrate", str(tmp_path / "run"), "--curve", "drawn", "--checkpoint", str(weights)]
    assert main([*command, "--webui", str(webui)]) == 0
    curve = curves.find(digest, folder)
    assert curve is not None
    assert [level.sigma for level in curve.levels] == [1.5, 0.5]  # at 3 nothing tells
    # Two normal scores of equal width, 0.2 and 0.5, seven of ten there: the odds are even where the densities are.
    middle = 0.35 - 0.08**2 / 0.3 * math.log(0.7 / 0.3)
    assert curve.levels[0].middle == pytest.approx(middle, abs=0.02)
    assert curve.levels[0].slope == pytest.approx(0.3 / 0.08**2, rel=0.25)
    maps = torch.zeros(2, 4, 4)
    maps[0, 1, 1], maps[1, 2, 2] = 0.5, 0.15
    assert read(("cat", "dog"), maps, 1.0, curve).words() == "cat ✓, dog perhaps missing"
    about = json.loads((folder / f"{digest}.json").read_text())["learned"]
    assert (about["judge"], about["images"], about["threshold"]) == ("drawn", 200, 0.5)
    assert "| 2 | 1.5 | 200 |" in capsys.readouterr().out  # the other half's 100 images, two entities each
    assert main(command) == 0
    assert (tmp_path / "run" / "curves" / f"{digest}.json").is_file()
    assert curve.draft is None  # nothing was drafted


def test_what_a_draft_tells_is_learned_where_the_run_drafted(tmp_path: Path) -> None:
    weights = tmp_path / "mine.safetensors"
    weights.write_bytes(b"weights")
    digest = hashlib.sha256(b"weights").hexdigest()
    told_run(tmp_path / "run", checkpoint=digest[:10], drafted=True)
    command = ["evaluate", "calibrate", str(tmp_path / "run"), "--curve", "drawn", "--checkpoint", str(weights)]
    assert main(command) == 0
    curve = curves.find(digest, tmp_path / "run" / "curves")
    assert curve is not None
    assert curve.draft is not None
    assert curve.draft == dataclasses.replace(curve.levels[0], sigma=1.6)  # the scores are those of 1.5


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (["--checkpoint", "other.safetensors"], "checkpoint: other.safetensors is"),
        (["--checkpoint", "none.safetensors"], "checkpoint: there is no file"),
        (["--curve", "clip"], "curve: clip calls nothing missing by itself"),
        (["--curve", "vqa"], "curve: vqa has not scored this run (drawn have)"),
        (["--arm", "com"], "arm: 'com' is not one of plain"),
        (["--threshold", "-1"], "with 0 entities missing are too few"),
        (["--webui", "nowhere"], "webui: there is no folder"),
    ],
    ids=lambda one: " ".join(one) if isinstance(one, list) else "",
)
def test_a_curve_that_cannot_be_learned_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], changes: list[str], said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine.safetensors").write_bytes(b"weights")
    Path("other.safetensors").write_bytes(b"others")
    told_run(tmp_path / "run", images=60, checkpoint=hashlib.sha256(b"weights").hexdigest()[:10])
    command = ["evaluate", "calibrate", "run", "--curve", "drawn", "--checkpoint", "mine.safetensors", *changes]
    assert main(command) != 0
    assert said in capsys.readouterr().err
    assert not list(tmp_path.glob("**/curves/*"))


def test_a_local_run_keeps_what_a_curve_is_learned_from() -> None:
    prompt = Prompt("a cat and a dog", ("cat", "dog"), "here")
    backend = Embedded(BackendPart("embedded"), Sampling(steps=4))
    (drawn,) = backend.draw([Job(prompt, "plain", Settings(), 3)])
    readings = drawn.trace["presence"] if drawn.trace else []
    sigmas = [one["sigma"] for one in readings]
    assert sigmas == sorted(sigmas, reverse=True)
    assert len(sigmas) >= 2
    assert max(sigmas) <= TOLD_AT[0]
    assert all(0 <= score < 1 for one in readings for score in one["scores"].values())
    assert [list(one["scores"]) for one in readings] == [["cat", "dog"]] * len(readings)


def test_readings_of_another_score_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As runs drawn before the score was another one keep them."""
    monkeypatch.chdir(tmp_path)
    Path("mine.safetensors").write_bytes(b"weights")
    told_run(tmp_path / "run", images=60, checkpoint=hashlib.sha256(b"weights").hexdigest()[:10], score=None)
    assert main(["evaluate", "calibrate", "run", "--curve", "drawn", "--checkpoint", "mine.safetensors"]) != 0
    assert "'peak', and 'lead' is read now; draw it again" in capsys.readouterr().err
