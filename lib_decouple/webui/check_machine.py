"""The doctor inside a WebUI: a small job of the host's own, on the model that it has loaded, examined as it is drawn.

The job goes the way of every other: the host's queue, sampler, attention, flags and hooks. Nothing of it is saved,
and it is ended as an interrupted one is when the examination is over.
"""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from .. import doctor
from ..core.gradient import LossGradient, Pass
from ..doctor import Examination, Report
from ..hosts import detect, reasons
from ..hosts.base import Looking
from ..hosts.family import denoiser_of, profile_of_model
from ..settings import Settings
from .loaded import loaded_model

PLAIN_STEPS = 2
"""Steps before the examination, which tell what a plain one takes; the first may have to load the model."""
LATE_STEPS = 2
"""Steps behind them that leave a gradient; the first's is proved whole, which takes time. On a slow machine one."""
STEPS = 20
SAMPLER = "Euler"
CORNER = 8
"""Latents a side of what is decoded: nobody sees the picture, and decoding takes a CPU long."""


class NotNow(RuntimeError):
    """Nothing can be checked at the moment, in a sentence."""


@dataclass
class Examiner:
    """Takes the place of guidance in one job, and examines its machine."""

    report: Report
    end: Callable[[], None]
    """Ends the job."""
    done: bool = False
    sampling: Any = None
    """The host's adapter, once the job samples."""
    problem: str = ""
    """Why there is none."""
    _began: list[float] = field(default_factory=list)

    def examine(self, gradient: LossGradient, latents: Tensor, step: int, run: Pass) -> bool:
        """See :attr:`Looking.examine`."""
        if self.done:
            return False
        doctor.wait_for(latents.device)
        self._began.append(time.perf_counter())
        took = [later - earlier for earlier, later in zip(self._began, self._began[1:])]
        plain, late = took[:PLAIN_STEPS], took[PLAIN_STEPS:]
        if len(plain) < PLAIN_STEPS:
            return False
        why_not = self._why_not_late(gradient, latents)
        if not why_not and len(late) < (LATE_STEPS if min(plain) < doctor.SLOW else 1):
            return True
        seconds, left_out = self.report.seconds, self.report.left_out
        seconds["plain"] = min(plain)
        if why_not:
            left_out.append(f"{doctor.LATE}: {why_not}")
        else:
            seconds["late"], self.report.late_with_proof = min(late), len(late) == 1
        self.done = True
        try:
            Examination(gradient, latents[:1].clone(), run, self.report).all()
        finally:
            self.end()
        return False

    @staticmethod
    def _why_not_late(gradient: LossGradient, latents: Tensor) -> str:
        """Why no gradient of the host's own pass is taken, in words that hold no path; "" where one is."""
        if gradient.learned.exact_since:
            return "none could be taken of the sampler's own pass"
        return "" if gradient.late_fits(latents, gradient.reader.named) else "it would not fit into the free memory"

    def why_not(self) -> str:
        """Why nothing was examined; "" where something was."""
        stood_aside = self.problem or getattr(self.sampling, "stood_aside", "")
        return stood_aside or ("" if self.done else "the job was ended before anything could be examined")


def check() -> Report:
    """Examine the machine, on the WebUI's model. Raises NotNow while a job runs or the chosen model is not loaded."""
    from modules import call_queue

    model = loaded_model()
    if model is None:
        raise NotNow("The chosen model is not loaded yet; draw a picture, then check again.")
    if not call_queue.queue_lock.acquire(blocking=False):
        raise NotNow("The WebUI is drawing or loading a model; check again when it is done.")
    try:
        return _in_the_drawing_thread(lambda: _draw_and_examine(model))
    finally:
        call_queue.queue_lock.release()


def _in_the_drawing_thread(job: Callable[[], Report | Exception]) -> Report:
    """``job``'s report; in the Forges its thread is the one in which the page's jobs are drawn."""
    try:
        from modules_forge import main_thread
    except ImportError:
        found = job()
    else:
        found = main_thread.run_and_wait_result(job)
    if isinstance(found, Exception):
        raise found
    return found


def _draw_and_examine(model: Any) -> Report | Exception:
    from modules import processing, shared

    state = shared.state

    def end() -> None:
        state.interrupted = True

    profile = profile_of_model(model)
    settings = doctor.settings_for(profile)
    examiner = Examiner(replace(_described(model, profile.family), layers=settings.layers), end)
    state.begin(job="Attention Decoupling checks this machine")
    try:
        side = profile.side if shared.device.type != "cpu" else min(profile.side, 256)
        with _last_parameters_kept(), closing(_job(model, side)) as p:
            p.scripts = _runner(examiner, settings)
            p.script_args = ()
            processing.process_images(p)
    except Exception as error:
        if not examiner.done:
            return error
    finally:
        state.interrupted = False
        state.end()
        shared.total_tqdm.clear()
    examiner.report.stood_aside = examiner.why_not()
    return examiner.report


def _job(model: Any, side: int) -> Any:
    from modules.processing import StableDiffusionProcessingTxt2Img

    p = StableDiffusionProcessingTxt2Img(
        sd_model=model, prompt=doctor.PROMPT, seed=1, sampler_name=SAMPLER, steps=STEPS, cfg_scale=7.0, width=side,
        height=side, do_not_save_samples=True, do_not_save_grid=True,
    )  # fmt: skip
    p.is_api = True
    return p


def _runner(examiner: Examiner, settings: Settings) -> Any:
    """A host's runner of scripts with a single one: what guides by ``settings``, looking on as ``examiner`` does."""
    from modules import scripts

    class Script(scripts.Script):
        def title(self) -> str:
            return "Check this machine"

        def process_before_every_sampling(self, p: Any, *_: Any, **given: Any) -> None:
            try:
                kind = detect.adapter(p.sd_model).SamplingPass
                examiner.sampling = kind(p, settings, Looking(examine=examiner.examine))
                examiner.sampling.attach(given.get("x"))
            except Exception as error:
                examiner.problem = reasons.explained(error)

        def post_sample(self, p: Any, drawn: Any, *_: Any) -> None:
            drawn.samples = drawn.samples[..., :CORNER, :CORNER]

    runner, script = scripts.ScriptRunner(), Script()
    script.filename, script.args_from, script.args_to = __file__, 0, 0
    runner.scripts = runner.alwayson_scripts = [script]
    return runner


@contextmanager
def _last_parameters_kept() -> Iterator[None]:
    """The host's file of what was drawn last, which a page reads back, is as before, after."""
    from modules import paths

    file = Path(paths.data_path) / "params.txt"
    before = file.read_bytes() if file.exists() else None
    try:
        yield
    finally:
        if before is not None:
            file.write_bytes(before)
        else:
            file.unlink(missing_ok=True)


def _described(model: Any, family: str) -> Report:
    """A report with what is known of the WebUI before it has drawn."""
    from modules import extensions, launch_utils

    denoiser = denoiser_of(model)
    millions = "" if denoiser is None else f", {sum(one.numel() for one in denoiser.parameters()) / 1e6:.0f} M"
    forge = hasattr(model, "forge_objects")
    return Report(
        host=f"{'Forge' if forge else 'AUTOMATIC1111'} {launch_utils.git_tag()}",
        model=f"{type(model).__name__} ({family}{millions})",
        flags=flags(sys.argv[1:]),
        extensions=sorted(one.name for one in extensions.active() if not one.is_builtin),
    )


def flags(arguments: list[str]) -> list[str]:
    """The names of the options among a command's ``arguments``; values, which may hold paths and secrets, are not."""
    names = (one.partition("=")[0] for one in arguments)
    return sorted({name for name in names if re.fullmatch(r"--[A-Za-z][\w-]*", name)})
