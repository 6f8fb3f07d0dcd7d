"""``evaluate calibrate --curve``: what a presence score means for the checkpoint of a run, by a judge's word."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ...hosts import curves
from ..study.files import write_whole
from ..study.presence import learn, reliability, reliability_as_markdown
from .backends.base import HASH_DIGITS, sha256
from .judges import threshold
from .store import Row, Store

AT_LEAST = 50
"""Images, and entities called missing among them: a curve of fewer would be noise."""


def learned_of(store: Store, judge: str, border: float | None, arm: str) -> tuple[list[dict[str, Any]], float]:
    """What :func:`learn` takes of the images of an arm, and the score below which the judge calls an entity missing.

    ``border``: the user's, for a judge that has none. Raises ValueError by name.
    """
    found = border if border is not None else threshold(judge)
    if found is None:
        chosen = calibration_of(store.folder, judge)
        if chosen is None:
            raise ValueError(
                f"curve: {judge} calls nothing missing by itself; `evaluate calibrate {store.folder} --judges {judge}` "
                "finds a threshold, or give one by --threshold"
            )
        found = chosen
    if judge not in store.judges():
        known = ", ".join(store.judges()) or "none"
        raise ValueError(f"curve: {judge} has not scored this run ({known} have); `evaluate judge` does it")
    scores = store.scores(judge)
    arms = {row["arm"] for row in store.images()}
    if arm not in arms:
        raise ValueError(f"arm: {arm!r} is not one of {', '.join(sorted(arms))}")
    images = []
    for row in store.images():
        readings = (row["trace"] or {}).get("presence")
        if row["arm"] == arm and row["id"] in scores and readings:
            images.append(_image(row, readings, scores[row["id"]], found, judge))
    if not images:
        raise ValueError(
            f"curve: no image of arm {arm!r} has presence scores; runs of the backends embedded and diffusers keep them"
        )
    return images, found


def _image(
    row: Row, readings: Sequence[dict[str, Any]], scores: dict[str, float], border: float, judge: str
) -> dict[str, Any]:
    names = list(readings[0]["scores"])
    if lacking := set(names) - set(scores):
        raise ValueError(f"curve: {judge} gives no score for {min(lacking)!r} of image {row['id']}")
    own = row["trace"].get("draft")
    return {
        **({} if own is None else {"draft": [own[name] for name in names]}),
        "sigmas": [reading["sigma"] for reading in readings],
        "scores": {"peak": [[reading["scores"][name] for name in names] for reading in readings]},
        "missing": [scores[name] < border for name in names],
    }


def calibration_of(folder: Path, judge: str) -> float | None:
    """The threshold that an earlier ``evaluate calibrate`` has found for a judge without one."""
    file = folder / "calibration.json"
    if not file.is_file():
        return None
    value = json.loads(file.read_text(encoding="utf-8")).get(judge, {}).get("threshold")
    return None if value is None else float(value)


def write(
    store: Store, judge: str, border: float | None, arm: str, checkpoint: Path, webui: Path | None
) -> tuple[Path, str]:
    """Learn from every other image, hold the rest to it, and write the curve learned from all.

    ``checkpoint``: the file that drew the run; ``webui``: a WebUI's data folder, where ``tell`` looks. Gives the
    curve's file, and how well it holds, for people. Raises ValueError by name, FileNotFoundError.
    """
    if not checkpoint.is_file():
        raise FileNotFoundError(f"checkpoint: there is no file {checkpoint}")
    digest = sha256(checkpoint)
    drawn_by = {row["checkpoint"] for row in store.images()}
    if drawn_by != {digest[:HASH_DIGITS]}:
        raise ValueError(
            f"checkpoint: {checkpoint.name} is [{digest[:HASH_DIGITS]}], but the run was drawn by "
            f"{', '.join(f'[{one}]' for one in sorted(drawn_by))}"
        )
    if webui is not None and not webui.is_dir():
        raise FileNotFoundError(f"webui: there is no folder {webui}")
    images, found = learned_of(store, judge, border, arm)
    missing = sum(sum(image["missing"]) for image in images)
    if len(images) < AT_LEAST or missing < AT_LEAST:
        raise ValueError(
            f"curve: {len(images)} images with {missing} entities missing are too few; at least {AT_LEAST} of each"
        )
    if len({tuple(image["sigmas"]) for image in images}) > 1:
        raise ValueError("curve: the images were drawn with several samplers or numbers of steps; one run, one of each")
    count = round(sum(len(image["missing"]) for image in images) / len(images))
    held = reliability(learn(images[0::2]), count, images[1::2])
    curve = learn(images)
    about = {"judge": judge, "threshold": found, "arm": arm, "images": len(images), "missing": missing, "held": held}
    folder = store.folder / "curves" if webui is None else webui / "attention-decoupling" / "curves"
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{digest}.json"
    write_whole(file, json.dumps({**curves.as_dict(curve, digest), "learned": about}, indent=1) + "\n")
    return file, reliability_as_markdown(held)
