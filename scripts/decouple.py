"""Registration of Attention Decoupling with the WebUI."""

from __future__ import annotations

import logging
from typing import Any

from lib_decouple.hosts import detect

detect.check_webui()

from modules import script_callbacks, scripts, shared  # noqa: E402
from modules.ui_components import InputAccordion  # noqa: E402

from lib_decouple.webui import api, callers, infotext, options, rest, try_out, ui, xyz  # noqa: E402
from lib_decouple.webui.jobs import Jobs  # noqa: E402

if getattr(shared.cmd_opts, "decouple_debug", False):
    logging.getLogger("lib_decouple").setLevel(logging.DEBUG)

jobs = Jobs()


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
        made, self.status_line = ui.controls(InputAccordion, self.elem_id, try_out.folder_of_webui())
        self.infotext_fields = [(made[name], paste) for name, paste in infotext.PASTE.items()]
        self.infotext_fields.append((self.status_line, ui.pasted_status))
        self.paste_field_names = list(infotext.PASTE.values())
        return list(made.values())

    def show_status_after_run(self, made: Any, tab: str) -> None:
        """The host writes this element after each run, for the page that started it; the status line follows it.
        (gradio 4 says of HTML, at every redrawing, that it has changed; of a text only when it has.)"""
        if tab == self.tabname and self.status_line is not None:
            made.component.change(
                fn=lambda info: ui.status_html(*jobs.status_of(info)),
                inputs=[made.component],
                outputs=[self.status_line],
                queue=False,
                show_progress=False,
            )

    def before_process(self, p: Any, *args: Any) -> None:
        """Before the host makes a job ready."""
        jobs.before(p)

    def process(self, p: Any, *args: Any) -> None:
        """Before the job's first batch."""
        jobs.begin(p, self.tabname, args)

    def before_process_batch(self, p: Any, *args: Any, **kwargs: Any) -> None:
        """Before each batch."""
        jobs.before_batch(p, kwargs["batch_number"])

    def process_before_every_sampling(self, p: Any, *args: Any, **kwargs: Any) -> None:
        """Before each sampling pass of a batch."""
        jobs.before_sampling(p, kwargs.get("x"))

    def post_sample(self, p: Any, ps: Any, *args: Any) -> None:
        """When a batch's latents are sampled, before they are decoded."""
        jobs.after_sampling(p, ps)

    def postprocess_batch(self, p: Any, *args: Any, **kwargs: Any) -> None:
        """When a batch is sampled."""
        jobs.after_batch(p, kwargs["batch_number"])

    def postprocess_image_after_composite(self, p: Any, pp: Any, *args: Any) -> None:
        """When a picture is finished."""
        jobs.finished(p, pp.image)

    def postprocess(self, p: Any, processed: Any, *args: Any) -> None:
        """After the job."""
        jobs.end(p, self.tabname, processed)


def serve(demo: Any, app: Any) -> None:
    """Check requests to the host's API, and add ours."""
    host = rest.of_webui(jobs.runs, jobs.live)
    caller = callers.Users(app, host.credentials).caller
    api.check_requests(
        app, options.preset_folder, infotext.problem_of_text, options.refused, caller, jobs.problem_of_draft
    )
    rest.add(app, host)


script_callbacks.on_ui_settings(options.add)
script_callbacks.on_before_ui(xyz.add)
script_callbacks.on_app_started(serve)
script_callbacks.on_before_image_saved(jobs.saving)
