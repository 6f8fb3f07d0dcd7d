"""``evaluate calibrate --curve``: what a presence score means for the checkpoint of a run, by a judge's word."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy.optimize import minimize

from ...core.drafts import LEVELS
from ...core.presence import SCORE, Curve, Level
from ...hosts import curves
from .backends.base import HASH_DIGITS, sha256
from .files import write_whole
from .judges import threshold
from .statistics import area
from .store import IMPORTED, Row, Store

AT_LEAST = 50
"""Images, and entities called missing among them: a curve of fewer would be noise."""


def drawn_by(store: Store) -> set[str]:
    """Digests of the checkpoints that have drawn the run; pictures of other tools tell none."""
    return {row["checkpoint"] for row in store.images() if row["recipe"] != IMPORTED}


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
        several = len(row["entities"]) > 1  # one alone has no lead, of which the curve is
        if row["arm"] == arm and row["id"] in scores and readings and several:
            images.append(_image(row, readings, scores[row["id"]], found, judge))
    if not images:
        raise ValueError(
            f"curve: no image of arm {arm!r} has presence scores; runs of the backends embedded and diffusers keep them"
        )
    return images, found


def _image(
    row: Row, readings: Sequence[dict[str, Any]], scores: dict[str, float], border: float, judge: str
) -> dict[str, Any]:
    if (score := readings[0].get("score", "peak")) != SCORE:
        raise ValueError(f"curve: image {row['id']} was read by {score!r}, and {SCORE!r} is read now; draw it again")
    names = list(readings[0]["scores"])
    if lacking := set(names) - set(scores):
        raise ValueError(f"curve: {judge} gives no score for {min(lacking)!r} of image {row['id']}")
    own = row["trace"].get("draft")
    return {
        "pair": (row["prompt_id"], row["seed"]),
        **({} if own is None else {"draft": [own[name] for name in names]}),
        "sigmas": [reading["sigma"] for reading in readings],
        "scores": {SCORE: [[reading["scores"][name] for name in names] for reading in readings]},
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
    if (known := drawn_by(store)) != {digest[:HASH_DIGITS]}:
        raise ValueError(
            f"checkpoint: {checkpoint.name} is [{digest[:HASH_DIGITS]}], but the run was drawn by "
            f"{', '.join(f'[{one}]' for one in sorted(known))}"
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


TELLS = 0.7
"""A noise level belongs to a curve when its area, over all entities of all images, is at least this."""


def learn(images: Sequence[dict[str, Any]], drafts: Sequence[dict[str, Any]] = ()) -> Curve:
    """The curve of the noise levels at which the score tells, each fitted by maximum likelihood; of those of the
    ``images`` and the ``drafts`` that have a draft's scores, what those tell, if anything.

    Raises ValueError when nothing is missing, or no level tells.
    """
    levels = []
    for k, sigma in enumerate(images[0]["sigmas"]):
        score = np.array([value for image in images for value in image["scores"][SCORE][k]])
        there = ~np.array([flag for image in images for flag in image["missing"]])
        if there.all():
            raise ValueError("images: nothing is missing in any, so there is nothing to learn from")
        if area(there, score) >= TELLS:
            middle, slope = _logistic(score, there)
            levels.append(Level(sigma, middle, slope))
    if not levels:
        raise ValueError(f"images: at no noise level is the area under the curve at least {TELLS}")
    most = max(len(image["missing"]) for image in images)
    return Curve(tuple(levels), _of_drafts([image for image in (*images, *drafts) if "draft" in image]), most)


def _of_drafts(images: Sequence[dict[str, Any]]) -> Level | None:
    """What a draft's score tells; None where too little to draw on it."""
    score = np.array([value for image in images for value in image["draft"]])
    there = ~np.array([flag for image in images for flag in image["missing"]], dtype=bool)
    if there.all() or not there.any() or area(there, score) < TELLS:
        return None
    return Level(LEVELS[-1], *_logistic(score, there))


def _logistic(score: np.ndarray, there: np.ndarray) -> tuple[float, float]:
    """``middle`` and ``slope`` of greatest likelihood. The score is standardised for the search."""
    mean, scale = score.mean(), score.std()
    z = (score - mean) / scale

    def loss(values: np.ndarray) -> float:
        odds = values[0] + values[1] * z
        return float(np.logaddexp(0, np.where(there, -odds, odds)).mean())

    a, b = minimize(loss, np.array([0.0, 1.0]), method="BFGS").x
    return float(mean - scale * a / b), float(b / scale)


def reliability(curve: Curve, count: int, images: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Told against true, by noise level: mean squared error (Brier), that of always telling the mean, and the entities
    told to be there with a chance below a half: how many, and how many of these are missing (precision, recall)."""
    rows = []
    for k, sigma in enumerate(images[0]["sigmas"]):
        scores = [value for image in images for value in image["scores"][SCORE][k]]
        told = [curve.probability(score, sigma) for score in scores]
        chance = np.array([one for one in told if one is not None])
        if not len(chance):
            continue
        there = ~np.array([flag for image in images for flag in image["missing"]])
        low, share = chance < 0.5, float(there.mean())
        row = {"count": count, "sigma": sigma, "n": len(chance), "told": float(chance.mean()), "true": share}
        row |= {"brier": float(np.square(chance - there).mean()), "brier_of_mean": share * (1 - share)}
        row |= {"flagged": int(low.sum()), "precision": None, "recall": None}
        if low.any():
            row["precision"] = float((~there)[low].mean())
        if not there.all():
            row["recall"] = float(low[~there].mean())
        rows.append(row)
    return rows


def reliability_as_markdown(rows: Sequence[dict[str, Any]]) -> str:
    """The rows for people."""
    lines = [
        "| entities | sigma | N | told present % | present % | Brier | of the mean | flagged | precision | recall |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        precision, recall = ("" if row[name] is None else f"{row[name]:.2f}" for name in ("precision", "recall"))
        lines.append(
            f"| {row['count']} | {row['sigma']:.2g} | {row['n']} | {100 * row['told']:.1f} | {100 * row['true']:.1f} | "
            f"{row['brier']:.3f} | {row['brier_of_mean']:.3f} | {row['flagged']} | {precision} | {recall} |"
        )
    return "\n".join(lines) + "\n"
