"""What happens to a job of the host, hook by hook; ``scripts/decouple.py`` passes the host's calls on."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
from modules import errors, progress, shared

from .. import __version__, presets, profiles
from ..hosts import detect, reasons
from ..hosts.base import Looking
from ..hosts.borrowed import borrow, put_back
from ..hosts.family import profile_of_model
from ..settings import Settings, specs
from . import api, callers, compare, drafts, infotext, map_files, options, order, report, xyz
from .report import Run
from .runs import Live, Runs, UnknownRun, of_job

log = logging.getLogger("lib_decouple")

OUR_KEYS = (
    *(spec.infotext for spec in specs().values()),
    *infotext.RESULTS,
    infotext.OLD_IOU,
    infotext.PRESET,
    infotext.RUN,
    infotext.PROFILE,
)


MOST_TOLD = 500
NO_DRAFTS_KEPT = (
    "No draft is kept, as “Keep the traces of the last runs” on the settings page is at 0: the best is told"
)


class StatusLines(NamedTuple):
    """What the status line tells of a run."""

    started: float
    """When the host began the job that the run is a part of."""
    lines: list[str]
    kept: str
    """The run's id when its trace is kept, else ""."""


@dataclass
class Jobs:
    """The jobs since the WebUI's page was made; what belongs to a single one is a :class:`Run` on the host's ``p``."""

    runs: Runs = field(default_factory=Runs)
    live: Live = field(default_factory=Live)
    told: dict[str, StatusLines] = field(default_factory=dict)
    """A run's id -> what the status line tells of it; the last :data:`MOST_TOLD`."""
    comparing: compare.Comparison | None = None
    """The job that is compared now, or was last."""
    drawn_from_draft: float = field(default=-1.0, init=False)
    """When the host began the job that has last been made to draw a draft; what other scripts draw within it is theirs.
    """

    def before(self, p: Any) -> None:
        """In ``before_process``: a host may go through one ``p`` several times, and may have failed the last time."""
        if self.comparing and self.comparing.p is p:
            self.comparing = None
        put_back(p)

    def begin(self, p: Any, tab: str, args: Sequence[Any]) -> None:
        """In ``process``: read the arguments and write the infotext; nothing is hooked yet."""
        before: Run | None = getattr(p, "attention_decoupling", None)  # of a copy, the job's that it was made of
        p.attention_decoupling = None
        p.decouple_drafts_counted = False
        if self.comparing and self.comparing.started != shared.state.time_start:
            self.comparing = None  # its job has ended by an exception
        around = self._comparison_around(p)
        if around and around.plain(around.p.iteration):
            return
        written = p.extra_generation_params
        if around and written is around.p.extra_generation_params:
            written = {}  # a copy of the compared job shares it, with the plain pictures' infotext
        for key in OUR_KEYS:
            written.pop(key, None)
        try:
            given = api.arguments_from(args, options.preset_folder())
            run = Run(xyz.settings_of(p, given.settings))
            if given.draw and self.drawn_from_draft != shared.state.time_start:
                self._draw_draft(given.draw, run, p, tab)
            if given.drafts_only and not around:
                self._draft_only(run, p)
            if given.compare and not around:
                run.comparison = self._compare(p, run)
        except ValueError as error:
            run = Run(Settings(enabled=True), problem=str(error))
            log.warning("Attention Decoupling stands aside: %s", error)
            p.comment(f"Attention Decoupling stood aside: {error}")
        is_on = run.settings.enabled or not run.drafts_only
        if run.comparison or run.drafts_only:
            run.settings = replace(run.settings, enabled=True)
        if run.settings.enabled:
            p.attention_decoupling = run
            run.within = before is not None and not before.over
            run.owner, run.task = callers.of_job(p), _page_task(p)
            for problem in options.problems():
                run.notes.append(problem)
                p.comment(f"Attention Decoupling: {problem}")
            run.kept = options.chosen("decouple_keep_traces") > 0
            if not run.kept:
                self.runs.clear()
                run.notes += [NO_DRAFTS_KEPT] if run.drafts_only else []
            preset = presets.matching(run.settings, options.preset_folder())
            if run.settings.left_open():
                _close(run, p)
            if is_on:
                told = {**infotext.write(run.settings, preset, run.profile), infotext.RELEASE: __version__}
                written.update(run.told_of_guided(told))
            written.update(run.infotext())
            if run.drafts_only:  # only now: the host's “last parameters” have what was asked for
                guided = run.settings.gradient if is_on else "none"
                run.settings = replace(run.settings, look="choose", gradient=guided)

    def before_batch(self, p: Any, batch: int) -> None:
        """In ``before_process_batch``: both batches of a pair have the same prompts and seeds, whatever other scripts
        did."""
        if self.comparing and self.comparing.p is p:
            self.comparing.pair_up(batch)
        put_back(p, "do_not_save_samples")  # of a batch before this one that was not drawn

    def before_sampling(self, p: Any, x: Any) -> None:
        """In ``process_before_every_sampling``: attach to the sampler that is about to run on latents like ``x``."""
        run = getattr(p, "attention_decoupling", None)
        if run is None or run.problem:
            return
        if getattr(p, "is_hr_pass", False) and not run.settings.hires:
            run.unreached = report.ONLY_HIRES
            return
        if run.comparison:
            if not run.comparison.same_prompts():
                p.comment("Compare: another script gave the decoupled picture another prompt than the plain one")
            if run.comparison.plain(p.iteration):
                return
        try:
            sampling = detect.adapter(p.sd_model).SamplingPass(p, run.settings, self._looking(run, p))
            if run.comparison:
                sampling.batches = run.comparison.decoupled_from(p.iteration)
            sampling.attach(x)
            run.passes = [*(one for one in run.passes if one is not sampling.replaces), sampling]
            self.live.begin(run)  # again for each pass: a job within this one, such as ADetailer's, has ended its own
        except Exception as error:
            errors.report("Attention Decoupling stands aside", exc_info=True)
            run.problem = reasons.explained(error, reasons.switched_on(p))
            p.comment(f"Attention Decoupling stood aside: {run.problem}")

    def after_sampling(self, p: Any, sampled: Any) -> None:
        """In ``post_sample``: where nothing was drawn there is nothing to decode, and nothing to save."""
        run = getattr(p, "attention_decoupling", None)
        if run is None:
            return
        put_back(p, "enable_hr")
        if p.iteration not in run.not_drawn:
            return
        from modules.processing import DecodedSamples

        sampled.samples = DecodedSamples(torch.zeros(3, p.height, p.width) for _ in sampled.samples)
        borrow(p, do_not_save_samples=True, do_not_save_grid=True)

    def after_batch(self, p: Any, batch: int) -> None:
        """In ``postprocess_batch``: a batch was sampled, by us or past us."""
        run = getattr(p, "attention_decoupling", None)
        if run is None or (run.comparison and run.comparison.plain(batch)):
            return
        run.drawn.add(batch)
        if run.unreached == report.NOT_REACHED and (script := reasons.selected_script(p)):
            run.unreached = f'the script "{script}" draws in its own way, past the sampling where guidance works'

    def finished(self, p: Any, picture: Any) -> None:
        """In ``postprocess_image_after_composite``: keep the finished pictures of a comparison."""
        if self.comparing and self.comparing.p is p and not (shared.state.interrupted or shared.state.skipped):
            self.comparing.keep(picture)

    def saving(self, params: Any) -> None:
        """In ``on_before_image_saved``: where the host numbers no files, a pair's pictures would have one name."""
        found = self.comparing
        if found and found.p is params.p and found.plain(params.p.iteration) and not shared.opts.save_images_add_number:
            stem, ending = os.path.splitext(params.filename)
            params.filename = f"{stem}-plain{ending}"

    def end(self, p: Any, tab: str, processed: Any) -> None:
        """In ``postprocess``: keep what was done, draw what more is wanted, and tell in the accordion."""
        run = getattr(p, "attention_decoupling", None)
        if run is None:
            put_back(p)
            return
        self.live.end(run)
        if run.drew_nothing:
            processed.images, processed.infotexts, processed.info, processed.index_of_first_image = [], [], "", 0
        kept = ""
        try:
            kept = self._keep(run, p, tab, processed)
        except Exception:
            errors.report("Attention Decoupling: the trace of this run is not kept", exc_info=True)
        if run.not_drawn and not run.drew_nothing:  # drafting failed in a later batch, which the host drew
            not_drawn = [number for number in range(len(p.all_prompts)) if number // p.batch_size in run.not_drawn]
            order.leave_out(not_drawn, p, processed)
        put_back(p)
        if run.comparison:
            self._put_side_by_side(run, run.comparison, processed)
        elif options.chosen("decouple_best_first"):
            self._put_in_order(run, p, processed)
        processed.extra_generation_params = run.info(processed.extra_generation_params)
        run.leave_behind(p.extra_generation_params)
        run.over = True
        self._tell(run, run.lines(), kept)

    def _comparison_around(self, p: Any) -> compare.Comparison | None:
        """The comparison within which another script draws ``p``, such as ADetailer the faces of a picture."""
        found = self.comparing
        return found if found and found.started == shared.state.time_start and found.p is not p else None

    def status_of(self, info: str) -> tuple[list[str], str]:
        """The status line's lines, and the run's id when its trace is kept, of the job whose ``info`` (JSON) the host
        gave to a page; of a job of many runs, such as an X/Y/Z plot, those of the last."""
        try:
            own = self.told[json.loads(info)["extra_generation_params"][infotext.RUN]]
        except (KeyError, TypeError, ValueError):
            return [], ""
        last = [one for one in list(self.told.values()) if one.started == own.started][-1]
        return last.lines, last.kept

    def _tell(self, run: Run, lines: list[str], kept: str = "") -> None:
        self.told[run.id] = StatusLines(shared.state.time_start, lines, kept)
        while len(self.told) > MOST_TOLD:
            del self.told[next(iter(self.told))]

    def _compare(self, p: Any, run: Run) -> compare.Comparison | None:
        """Have each picture drawn plain, too; None, and a word to the user, where that can't be."""
        try:
            self.comparing = compare.begin(p, shared.state)
        except ValueError as error:
            note = f"Compare is left out: {error}"
            self._tell(run, [note])
            p.extra_generation_params[infotext.RUN] = run.id_for_info()
            run.notes.append(note)
            p.comment(note)
            return None
        return self.comparing

    def _draft_only(self, run: Run, p: Any) -> None:
        """Have drafts of the job's pictures made, and none drawn. Raises ValueError where a script draws them."""
        if script := reasons.selected_script(p):
            raise ValueError(f'drafts_only: the script "{script}" draws pictures of its own; choose None under Script')
        run.drafts_only = True

    def problem_of_draft(self, wanted: drafts.Wanted) -> str:
        """Why a draft can't be drawn; "" when it is kept."""
        try:
            drafts.find(wanted, self.runs.get(wanted.run))
        except (UnknownRun, ValueError) as error:
            return f"draw: {error}" if isinstance(error, UnknownRun) else str(error)
        return ""

    def _draw_draft(self, wanted: drafts.Wanted, run: Run, p: Any, tab: str) -> None:
        """Have the job draw the draft, with no more of them. Raises ValueError where it can't be."""
        if problem := self.problem_of_draft(wanted):
            raise ValueError(problem)
        settings = _closed(run.settings, p)[0] if run.settings.left_open() else run.settings
        told = drafts.draw(wanted, self.runs.get(wanted.run), p, settings, tab, shared.state)
        self.drawn_from_draft = shared.state.time_start
        if run.settings.look != "off":
            run.settings = replace(run.settings, look="tell")
        run.notes += told
        for note in told:
            p.comment(f"Attention Decoupling: {note}")

    def _looking(self, run: Run, p: Any) -> Looking:
        """What the settings page, whoever watches, and ``--decouple-debug`` want to see of a run."""

        def doubt(told: str) -> None:
            run.notes.append(told)
            p.comment(f"Attention Decoupling: {told}")

        return Looking(
            after=run.kept and options.chosen("decouple_look_after"),
            drafts=run.kept,
            draws=not run.drafts_only,
            moments=run.kept or options.chosen("decouple_map_files") != "off",
            live=lambda: self.live.watched() and options.chosen("decouple_live_panel"),
            doubts=doubt if getattr(shared.cmd_opts, "decouple_debug", False) else None,
        )

    def _keep(self, run: Run, p: Any, tab: str, processed: Any) -> str:
        """The run's id when its trace is kept, else ""."""
        wanted = options.chosen("decouple_map_files")
        if not run.passes or not (run.kept or wanted != "off"):
            return ""
        job = of_job(run, p, tab, map_files.pictures(p, processed))
        if run.kept:
            self.runs.keep(job, options.chosen("decouple_keep_traces"))
        try:
            map_files.write(wanted, job, p, processed)
        except Exception as error:
            errors.report("Attention Decoupling could not write the maps", exc_info=True)
            run.notes.append(f"The maps could not be written: {_in_short(error)}")
        return job.id if run.kept else ""

    def _put_side_by_side(self, run: Run, comparison: compare.Comparison, processed: Any) -> None:
        """Add the pictures of a comparison."""
        self.comparing = None

        def told(number: int) -> str:
            return run.label(*divmod(number, comparison.size))

        try:
            run.notes.append(compare.add_pictures(comparison, processed, told))
        except Exception as error:
            errors.report("Attention Decoupling could not put the pictures side by side", exc_info=True)
            run.notes.append(f"The pictures could not be put side by side: {_in_short(error)}")

    def _put_in_order(self, run: Run, p: Any, processed: Any) -> None:
        """Have the best-ranked pictures first, in the gallery and in the answer."""
        ranked = [batch * p.batch_size + position for batch, position in run.best_first()]
        try:
            why_not = order.put(ranked, p, processed) if len(ranked) > 1 else ""
        except Exception:
            errors.report("Attention Decoupling could not put the pictures in order", exc_info=True)
            why_not = "an unexpected error, which the WebUI's console has"
        if why_not:
            run.notes.append(f"The pictures are not put in order: {why_not}")


def _in_short(error: Exception) -> str:
    told = error.strerror if isinstance(error, OSError) else None
    return told or "an unexpected error, which the WebUI's console has"


def _page_task(p: Any) -> str:
    """The host's name of the task that a page has started, and knows; "" for a job of the API."""
    return "" if getattr(p, "is_api", False) else str(progress.current_task or "")


def _close(run: Run, p: Any) -> None:
    """Fill what the settings leave open from the loaded model's profile, and say so."""
    settings, profile = _closed(run.settings, p)
    run.profile_told = profile.told(run.settings)
    run.settings, run.profile = settings, profile.name()


def _closed(settings: Settings, p: Any) -> tuple[Settings, profiles.Profile]:
    """``settings`` with what they leave open as the profile of the job's model has it, and that profile."""
    profile = profile_of_model(getattr(p, "sd_model", None))
    return profiles.closed(settings, profile, _sampler_steps(p)), profile


def _sampler_steps(p: Any) -> int:
    """How many steps the job's sampler will make; in img2img its strength takes some away."""
    if not getattr(p, "init_images", None):
        return int(p.steps)
    from modules import sd_samplers_common

    return int(sd_samplers_common.setup_img2img_steps(p)[1]) + 1
