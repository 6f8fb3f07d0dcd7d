"""Which WebUI this is: told by what it and its loaded model have, never by a version."""

from __future__ import annotations

import importlib
import importlib.util
from typing import Any

from .reasons import Unsupported

_NEEDED = (
    ("scripts", "Script.process_before_every_sampling"), ("scripts", "AlwaysVisible"),
    ("script_callbacks", "on_before_ui"), ("script_callbacks", "on_app_started"),
    ("ui_components", "InputAccordion"),
    ("sd_samplers", "find_sampler_config"), ("prompt_parser", "reconstruct_multicond_batch"),
)  # fmt: skip


def check_webui() -> None:
    """Raises Unsupported, in a sentence, where this WebUI lacks what the extension stands on.

    Raised while a script is loaded it costs nothing: the WebUI prints it and goes on without the script.
    """
    lacking = []
    for module, path in _NEEDED:
        try:
            found: Any = importlib.import_module(f"modules.{module}")
            for name in path.split("."):
                found = getattr(found, name)
        except (ImportError, AttributeError):
            lacking.append(f"{module}.{path}")
    if lacking:
        raise Unsupported(
            f"Attention Decoupling is left out: this WebUI has no {', '.join(lacking)}; "
            "Forge Neo, Forge, Forge Classic and AUTOMATIC1111 v1.10 have"
        )


def reads_layouts() -> bool:
    """Does this WebUI build a model by the yaml beside its checkpoint? The Forges know the large families alone."""
    return importlib.util.find_spec("ldm") is not None and importlib.util.find_spec("modules_forge") is None


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
        "Forge Neo's, Forge's and AUTOMATIC1111's are"
    )
