"""Registration of Attention Decoupling with the WebUI."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any

from modules import errors, script_callbacks, scripts, shared
from modules.ui_components import InputAccordion

from lib_decouple import presets
from lib_decouple.hosts import detect
from lib_decouple.hosts.base import Looking
from lib_decouple.settings import Settings, specs
from lib_decouple.webui import api, compare, infotext, map_files, options, rest, ui, xyz
from lib_decouple.webui.report import Run
from lib_decouple.webui.runs import Live, Runs, of_job

log = logging.getLogger("lib_decouple")
if getattr(shared.cmd_opts, "decouple_debug", False):
    log.setLevel(logging.DEBUG)

OUR_KEYS = (
    *(spec.infotext for spec in specs().values()),
    infotext.FOUND,
    infotext.IOU,
    infotext.STOOD_ASIDE,
    infotext.PRESET,
)
status: dict[str, tuple[list[str], str]] = {}
"""Tab -> the lines of the status line after its last run, and that run's id when its trace is kept."""
runs, live = Runs(), Live()
comparing: compare.Comparison | None = None
"""The job that is compared now, or was last."""


def comparison_around(p: Any) -> compare.Comparison | None:
    """The comparison within which another script draws ``p``, such as ADetailer the faces of a picture."""
    found = comparing
    return found if found and found.started == shared.state.time_start and found.p is not p else None


class Script(scripts.Script):
    """The accordion in txt2img and img2img, and the host's hooks."""

    def __init__(self) -> None:
        super().__init__()
        self.status_line: Any = None
        for tab in ("txt2img", "img2img"):
            self.on_after_component(
                lambda made, tab=tab: self.show_status_after_run(made, tab), elem_id=f"generation_info_{tab}"
            )

    def title(self) -> str:
        """The name, in lower case, is what the API calls the script."""
        return api.TITLE

    def show(self, is_img2img: bool) -> Any:
        """Always there; the accordion turns it on."""
        return scripts.AlwaysVisible

    def ui(self, is_img2img: bool) -> list[Any]:
        """The controls, in the order of a positional argument list."""
        made, self.status_line = ui.controls(InputAccordion, self.elem_id)
        self.infotext_fields = [(made[name], paste) for name, paste in infotext.PASTE.items()]
        self.infotext_fields.append((self.status_line, ui.pasted_status))
        self.paste_field_names = list(infotext.PASTE.values())
        return list(made.values())

    def show_status_after_run(self, made: Any, tab: str) -> None:
        """The host writes this element after each run; the status line follows it. (gradio 4 says of HTML, at every
        redrawing, that it has changed; of a text only when it has.)"""
        if tab == self.tabname and self.status_line is not None:
            made.component.change(
                fn=lambda: ui.status_html(*status.get(tab, ([], ""))),
                outputs=[self.status_line],
                queue=False,
                show_progress=False,
            )

    def process(self, p: Any, *args: Any) -> None:
        """Read the arguments and write the infotext; nothing is hooked yet."""
        p.attention_decoupling = None
        around = comparison_around(p)
        if around and around.plain(around.p.iteration):
            return
        status.pop(self.tabname, None)
        written = p.extra_generation_params
        if around and written is around.p.extra_generation_params:
            written = {}  # a copy of the compared job shares it, with the plain pictures' infotext
        for key in OUR_KEYS:
            written.pop(key, None)
        try:
            given = api.arguments_from(args, options.preset_folder())
            comparison = None if around or not given.compare else self.compare(p)
            run = Run(xyz.settings_of(p, replace(given.settings, enabled=given.settings.enabled or bool(comparison))))
            run.comparison = comparison
        except ValueError as error:
            run = Run(Settings(enabled=True), problem=str(error))
            log.warning("Attention Decoupling stands aside: %s", error)
            p.comment(f"Attention Decoupling stood aside: {error}")
        if run.settings.enabled:
            p.attention_decoupling = run
            run.kept = options.chosen("decouple_keep_traces") > 0
            preset = presets.matching(run.settings, options.preset_folder())
            written.update({**run.told_of_guided(infotext.write(run.settings, preset)), **run.infotext()})

    def compare(self, p: Any) -> compare.Comparison | None:
        """Have each picture drawn plain, too; None, and a word to the user, where that can't be."""
        global comparing
        try:
            comparing = compare.begin(p, shared.state)
        except ValueError as error:
            note = f"Compare is left out: {error}"
            status[self.tabname] = [note], ""
            p.comment(note)
            return None
        return comparing

    def before_process_batch(self, p: Any, *args: Any, **kwargs: Any) -> None:
        """Both batches of a pair have the same prompts and seeds, whatever other scripts did."""
        if comparing and comparing.p is p:
            comparing.pair_up(kwargs["batch_number"])

    def process_before_every_sampling(self, p: Any, *args: Any, **kwargs: Any) -> None:
        """Attach to the sampler that is about to run."""
        run = getattr(p, "attention_decoupling", None)
        if run is None or run.problem or (getattr(p, "is_hr_pass", False) and not run.settings.hires):
            return
        if run.comparison:
            if not run.comparison.same_prompts():
                p.comment("Compare: another script gave the decoupled picture another prompt than the plain one")
            if run.comparison.plain(p.iteration):
                return
        try:
            sampling = detect.adapter(p.sd_model).SamplingPass(p, run.settings, looking(run))
            sampling.attach(kwargs.get("x"))
            run.passes = [*(one for one in run.passes if one is not sampling.replaces), sampling]
            live.begin(run)  # again for each pass: a job within this one, such as ADetailer's, has ended its own
        except Exception as error:
            errors.report("Attention Decoupling stands aside", exc_info=True)
            run.problem = f"{type(error).__name__}: {error}"
            p.comment(f"Attention Decoupling stood aside: {run.problem}")

    def postprocess_image_after_composite(self, p: Any, pp: Any, *args: Any) -> None:
        """Keep the finished pictures of a comparison."""
        if comparing and comparing.p is p and not (shared.state.interrupted or shared.state.skipped):
            comparing.keep(pp.image)

    def postprocess(self, p: Any, processed: Any, *args: Any) -> None:
        """Keep what was done, draw what more is wanted, and tell in the accordion."""
        run = getattr(p, "attention_decoupling", None)
        if run is None:
            return
        live.end(run)
        kept = ""
        try:
            kept = self.keep(run, p, processed)
        except Exception:
            errors.report("Attention Decoupling: the trace or the maps of this run are not kept", exc_info=True)
        if run.comparison:
            self.finish(run, processed)
        status[self.tabname] = run.lines(), kept

    def keep(self, run: Run, p: Any, processed: Any) -> str:
        """The run's id when its trace is kept, else ""."""
        wanted = options.chosen("decouple_map_files")
        if not run.passes or not (run.kept or wanted != "off"):
            return ""
        job = of_job(run, p, self.tabname, map_files.pictures(p, processed))
        if run.kept:
            runs.keep(job, options.chosen("decouple_keep_traces"))
        map_files.write(wanted, job, p, processed)
        return job.id if run.kept else ""

    def finish(self, run: Run, processed: Any) -> None:
        """Add the pictures of a comparison, and leave the job as it was asked for."""
        global comparing
        comparing, comparison = None, run.comparison
        comparison.p.n_iter = comparison.batches

        def told(number: int) -> str:
            aside = run.result(infotext.STOOD_ASIDE, *divmod(number, comparison.size))
            return "decoupled: stood aside" if aside else "decoupled"

        try:
            run.notes.append(compare.add_pictures(comparison, processed, told))
        except Exception as error:
            errors.report("Attention Decoupling could not put the pictures side by side", exc_info=True)
            run.notes.append(f"The pictures could not be put side by side: {type(error).__name__}: {error}")


def looking(run: Run) -> Looking:
    """What the settings page, and whoever watches, want to see of a run."""
    return Looking(
        after=run.kept and options.chosen("decouple_look_after"),
        moments=run.kept or options.chosen("decouple_map_files") != "off",
        live=lambda: live.watched() and options.chosen("decouple_live_panel"),
    )


def serve(demo: Any, app: Any) -> None:
    """Check requests to the host's API, and add ours."""
    api.check_requests(app, options.preset_folder)
    rest.add(app, rest.of_webui(runs, live))


script_callbacks.on_ui_settings(options.add)
script_callbacks.on_before_ui(xyz.add)
script_callbacks.on_app_started(serve)
