"""Which WebUI this is: told by what its loaded model has, never by a version."""

from __future__ import annotations

import importlib
from typing import Any

from .ldm import Unsupported


def adapter(model: Any) -> Any:
    """The adapter module for the host that loaded ``model`` (its ``sd_model``): has ``SamplingPass`` and ``tokenize``.

    Nothing of a host is imported before it is known. Raises Unsupported for an unknown host.
    """
    if hasattr(model, "forge_objects"):
        return importlib.import_module(f"{__package__}.forge")
    if hasattr(getattr(model, "model", None), "diffusion_model") and hasattr(model, "cond_stage_model"):
        return importlib.import_module(f"{__package__}.a1111")
    raise Unsupported(
        f"this WebUI's model ({type(model).__name__}) is like that of no WebUI known here; "
        "AUTOMATIC1111's and Forge's are"
    )
