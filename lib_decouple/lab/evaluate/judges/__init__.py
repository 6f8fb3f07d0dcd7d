"""The judges, one file each; ``named`` builds them from the command line's words."""

from __future__ import annotations

from typing import Any

from . import caption, clip, clip_text, drawn, open_clip, owlv2, soft_tifa, vqa, vqascore
from .base import Judge, Missing, Options

KINDS: dict[str, Any] = {
    judge.kind: judge
    for judge in (
        drawn.DrawnJudge,
        clip.Clip,
        open_clip.OpenClip,
        clip_text.ClipText,
        vqa.Vqa,
        vqascore.VqaScore,
        soft_tifa.SoftTifa,
        owlv2.Owlv2,
        caption.Caption,
    )
}

__all__ = ["KINDS", "Judge", "Missing", "Options", "named", "threshold"]


def threshold(name: str) -> float | None:
    """The border between there and missing of the judge of that name, as scores are stored under it; None for none."""
    kind = KINDS.get(name.partition(":")[0])
    return None if kind is None else kind.threshold


def named(text: str, options: Options) -> tuple[list[Judge], list[str]]:
    """``"drawn,clip:/folder"`` -> the judges that can be had, and why the others cannot.

    After the colon stands a local folder or a hub name. Captioning judges come first: others read captions.
    Raises ValueError for an unknown kind, a judge named twice and a second captioning judge.
    """
    found: list[Judge] = []
    lacking: list[str] = []
    names = [part.strip() for part in text.split(",")]
    kinds = [name.partition(":")[::2] for name in names]
    for name, (kind, _) in zip(names, kinds):
        if kind not in KINDS:
            raise ValueError(f"judges: {kind!r} is not one of {', '.join(KINDS)}")
        if names.count(name) > 1:
            raise ValueError(f"judges: {name!r} is named twice")
    if sum(kind == "caption" for kind, _ in kinds) > 1:
        raise ValueError("judges: more than one caption; a run has one captioning model")
    for kind, source in sorted(kinds, key=lambda pair: pair[0] != "caption"):
        try:
            found.append(KINDS[kind](source, options))
        except Missing as error:
            lacking.append(f"{kind}:{source}: {error}" if source else f"{kind}: {error}")
    return found, lacking
