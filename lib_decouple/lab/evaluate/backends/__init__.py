"""What draws, one file each."""

from __future__ import annotations

from pathlib import Path

from ..plan import BackendPart, Sampling
from .base import About, Backend, Drawn, Unreachable, WrongCheckpoint

__all__ = ["About", "Backend", "Drawn", "Unreachable", "WrongCheckpoint", "opened"]


def opened(
    part: BackendPart, sampling: Sampling, folder: Path, url: str = "", auth: str = "", maps: bool = False
) -> Backend:
    """The backend that a plan names; paths are relative to ``folder``. ``url``: which WebUI.

    Models are loaded, and hosts asked, when first needed.
    """
    if part.kind == "webui":
        from .webui import WebUI

        return WebUI(url, sampling, part.timeout, auth, part.sha256)
    if part.kind == "diffusers":
        from .diffusers import Local

        return Local(part, sampling, folder / part.checkpoint, maps)
    from .embedded import Embedded

    return Embedded(part, sampling, maps)
