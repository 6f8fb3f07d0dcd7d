"""The model that a WebUI's next job draws with, as far as it is there; nothing here loads one."""

from __future__ import annotations

from typing import Any
from weakref import WeakKeyDictionary

from torch import nn

from ..hosts import detect
from ..hosts.denoisers import cross_attention_layers
from ..hosts.family import denoiser_of
from ..hosts.reasons import Unsupported

_guidable: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()


def loaded_model() -> Any:
    """The model that is loaded and chosen; None where there is none such, or it isn't whole.

    There is none before the first, while another one is read, behind a refiner's job, and in the Forges from the
    choice of another checkpoint to the next picture. ``shared.sd_model`` would load one, and wait.
    """
    from modules import sd_models, shared

    model = sd_models.model_data.sd_model
    if model is None or type(model).__name__ == "FakeInitialModel":  # Forge's, until the first picture
        return None
    chosen = sd_models.checkpoint_aliases.get(getattr(shared.opts, "sd_model_checkpoint", None))
    own = getattr(model, "sd_checkpoint_info", None)
    if chosen is not None and own is not None and chosen.filename != own.filename:
        return None
    return model if hasattr(model, "forge_objects") or _is_whole() else None


def _is_whole() -> bool:
    """AUTOMATIC1111 takes its own text encoder out of a model while it reads other weights into it."""
    from modules import sd_hijack

    return getattr(sd_hijack.model_hijack, "clip", None) is not None


def why_not_guided(model: Any) -> str:
    """What is told of a model that can't be guided, before anything is drawn; "" of one that can."""
    try:
        detect.adapter(model).tokenize("")
        if _can_be_guided(denoiser_of(model)):
            return ""
    except Unsupported:
        pass
    return f"This model ({type(model).__name__}) can't be guided; SD 1.x, 2.x, XL and Anima can."


def _can_be_guided(denoiser: nn.Module | None) -> bool:
    """Looked up once a network: a page asks at each key that is pressed."""
    if denoiser is None:
        return False
    if denoiser not in _guidable:
        try:
            _guidable[denoiser] = bool(cross_attention_layers(denoiser))
        except Unsupported:
            _guidable[denoiser] = False
    return _guidable[denoiser]
