"""Why nothing is guided, in words that a person can act on: the one place where such a sentence is made.

It names what to do and who is likely at work; never a class of exceptions, a module or a layer, which only the log has.
"""

from __future__ import annotations

import logging
import traceback
from collections.abc import Iterable, Sequence
from pathlib import PurePath
from typing import Any

from ..core.differentiable import GradientCut
from ..core.gradient import NonFinite
from ..core.losses import OVERLAP_LOSSES, WeightedLoss
from ..core.maps import AttentionReplaced, ContextMisfit, MapsMisfit
from ..core.memory import is_out_of_memory
from ..core.schedule import Schedule
from ..prompt.align import EntityConflict, EntityNotFound
from ..settings import specs

log = logging.getLogger("lib_decouple")


class Unsupported(ValueError):
    """A sampler or a model that guidance cannot work with, in a sentence."""


class NothingToGuide(ValueError):
    """No image of a batch has anything to guide, in a sentence."""


IN_PIECES = (
    *("Kohya HRFix", "Kohya Hires.fix", "Deep Shrink", "HyperTile", "MultiDiffusion", "Tiled Diffusion"),
    *("Mixture of Diffusers", "DemoFusion", "HiDiffusion", "ScaleCrafter"),
)
"""Extensions that draw a picture in pieces, or at another size inside the model."""

BY_REGION = ("Regional Prompter", "Forge Couple", "Latent Couple", "Cutoff", "Prompt Fusion")
"""Extensions that draw with other texts than the prompt's, or change what the model is given of them."""

WITH_THEIR_OWN = ("Regional Prompter", "Forge Couple", "IP-Adapter", "ControlNet", "StyleAlign", "Token Merging")
"""Extensions that put a cross-attention of their own into the model."""

OUT_OF_MEMORY = "out of memory; choose a smaller batch, fewer pixels, or the preset “Low memory”"
_WITHOUT_BACKWARD = (
    ("sage", "SageAttention cannot be differentiated; start the WebUI without --sage"),
    ("flash", "FlashAttention, as it is built in here, cannot be differentiated; start the WebUI without --flash"),
)
"""What stands in a function's name, and what to do about it."""

NOT_FINITE = (
    "numbers ran over while the gradient was taken; start the WebUI with --upcast-sampling or --no-half, or lower the "
    "step size"
)
NOT_THERE_YET = (
    "the prompt is edited while it is drawn, and where drafts are looked at it names nothing that must not go missing; "
    "let it name them earlier, or for longer"
)
"""Why nothing is drafted where some other step has something to look for."""
NO_CURVE = "nobody has learned what the attention of this checkpoint tells, so the best draft was drawn"
NO_DRAFT_CURVE = "of this checkpoint nobody has learned what a draft tells, so all were made and the best was drawn"
"""Why “insist” accepts no draft, and without a curve can't begin again."""
NO_CURVE_TO_STOP = (
    "stop: 'presence' is not possible for this checkpoint, of which no curve was learned; off or on, or learn one"
)
UNKNOWN = "an unexpected error in the guided pass, which the console has"


def explained(error: BaseException, active: Iterable[str] = ()) -> str:
    """A sentence for ``error``. ``active``: titles of the scripts that are switched on in the job."""
    if is_out_of_memory(error):
        return OUT_OF_MEMORY
    if isinstance(error, MapsMisfit):
        return (
            "the attention has not the picture's size, as where a picture is drawn in pieces, or at a smaller size "
            f"inside the model. {_whose(IN_PIECES, active)}"
        )
    if isinstance(error, ContextMisfit):
        return (
            "the picture is not drawn with the prompt as it stands, so its words can't be told in the attention. "
            f"{_whose(BY_REGION, active)}"
        )
    if isinstance(error, AttentionReplaced):
        return f"the model's own cross-attention is not used, so it can't be read. {_whose(WITH_THEIR_OWN, active)}"
    if isinstance(error, GradientCut):
        return _cut_in_words(error)
    if isinstance(error, NonFinite):
        return NOT_FINITE
    if isinstance(error, (Unsupported, NothingToGuide, EntityNotFound, EntityConflict)):
        return str(error)
    if isinstance(error, ValueError) and str(error).partition(":")[0] in specs():
        return str(error)  # of a setting, with what is allowed
    log.warning("Attention Decoupling: an unexpected error in the guided pass", exc_info=error)
    extension = _extension(error)
    return f"an error in the extension “{extension}”, which the console has" if extension else UNKNOWN


def _cut_in_words(error: GradientCut) -> str:
    """What cuts the gradient, and what to do where that is known."""
    told = str(error)
    known = next((words for name, words in _WITHOUT_BACKWARD if name in told.lower()), "")
    return f"{told}{'. ' * bool(known)}{known}"


def too_few(names: Sequence[str], loss: str, left_out: str = "") -> str:
    """Why entities of these names give nothing to guide; "" where they do. ``left_out``: what the prompt names, too,
    each with why it isn't kept apart by itself."""
    named = f" but {left_out}" if left_out else ""
    if not names:
        return f"no entity was found in the prompt{named}; click the words that must not go missing"
    if len(names) < fewest_entities(WeightedLoss.parse(loss)):
        return (
            f"only “{names[0]}” was found in the prompt{named}, and {loss} keeps entities apart, which needs two; "
            "click another word, or choose a loss with intensity"
        )
    return ""


def fewest_entities(loss: Any) -> int:
    """Of how many entities a ``loss`` can tell anything: one that keeps them apart needs two."""
    return 2 if {term.name for term in getattr(loss, "terms", ())} <= set(OVERLAP_LOSSES) else 1


def no_guided_step(schedule: Schedule, total: int) -> str:
    """Why none of ``total`` steps would be guided; "" where one is."""
    window = schedule.window(total)
    if schedule.start < window:
        return ""
    few = f"only the first {window} may be" if window < total else f"the sampler makes {total}"
    return (
        f"no step would be guided: {schedule.start} are passed over and {few}; lower “Guided from step”, or draw more "
        "steps"
    )


def switched_on(p: Any) -> list[str]:
    """Titles of a host's job's scripts that are switched on: the one under "Script", and the others whose first
    argument is true."""
    scripts, args = getattr(p, "scripts", None), list(getattr(p, "script_args", None) or ())
    found = [
        script
        for script in getattr(scripts, "alwayson_scripts", None) or ()
        if (own := args[script.args_from : script.args_to]) and own[0] is True
    ]
    return [*(str(script.title()) for script in found), *filter(None, (selected_script(p),))]


def selected_script(p: Any) -> str:
    """Title of the script chosen under "Script" in a host's job, such as the X/Y/Z plot; "" for none."""
    listed = getattr(getattr(p, "scripts", None), "selectable_scripts", None) or ()
    args = getattr(p, "script_args", None) or ()
    chosen = args[0] if args else 0
    return str(listed[chosen - 1].title()) if isinstance(chosen, int) and 0 < chosen <= len(listed) else ""


def _whose(known: Sequence[str], active: Iterable[str]) -> str:
    """Which extension does this, where one that is known to is switched on, else which ones do."""
    plain = [_letters(name) for name in known]
    guilty = next((title for title in active if any(name in _letters(title) for name in plain)), "")
    if guilty:
        return f"“{guilty}”, which is switched on, is likely at work: switch it off, or draw without guidance"
    return f"{', '.join(known[:-1])} and {known[-1]} do so: switch off the one you use, or draw without guidance"


def _letters(text: str) -> str:
    return "".join(filter(str.isalnum, text.lower()))


def _extension(error: BaseException) -> str:
    """The extension in whose code an error was raised, or through which it came; "" where none was."""
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        parts = PurePath(frame.filename).parts
        for folder in ("extensions", "extensions-builtin"):
            if folder in parts[:-1] and "lib_decouple" not in parts:
                return parts[parts.index(folder) + 1]
    return ""
