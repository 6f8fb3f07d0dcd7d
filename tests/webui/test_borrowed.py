"""What a job of ours changes of the host's job is put back however the job ends."""

from __future__ import annotations

import copy
from types import SimpleNamespace

import pytest

pytest.importorskip("fastapi", reason="fastapi is not installed")
import torch
from PIL import Image

from lib_decouple.hosts.borrowed import borrow, put_back
from lib_decouple.hosts.seeds import SeedChoice
from lib_decouple.settings import FIXED
from lib_decouple.webui import infotext

from .test_drafts import SCORES, a_job, decoded, drafted  # noqa: F401
from .test_jobs import host  # noqa: F401
from .test_runs import sampling

ASKED = (
    "n_iter",
    "batch_size",
    "seed",
    "subseed",
    "init_images",
    "enable_hr",
    "do_not_save_samples",
    "do_not_save_grid",
)
BLACK, RED, BLUE = (Image.new("RGB", (8, 8), colour) for colour in ("black", "red", "blue"))


def state_of(p):
    return {name: getattr(p, name, "none") for name in ASKED}


def test_what_was_borrowed_is_put_back_and_what_others_have_set_is_left():
    p = SimpleNamespace(a=1, b=2, c=[3])
    borrow(p, a=10, b=20, new=30)
    borrow(p, a=100, c=[4])
    p.b = 21  # another script's
    put_back(copy.copy(p))  # within the job
    assert (p.a, p.b, p.c, p.new) == (100, 21, [4], 30)
    put_back(p, "c")
    assert (p.a, p.b, p.c, p.new) == (100, 21, [3], 30)
    put_back(p)
    assert (p.a, p.b, p.c, hasattr(p, "new")) == (1, 21, [3], False)
    p.a = 5
    put_back(p)
    assert p.a == 5


def of_a_draft(webui, enabled):
    run = drafted(p=a_job(init_images=[RED, BLUE], all_prompts=["a", "a cat and a dog"]), tab="img2img")
    webui.jobs.runs.keep(run, 5)
    return {"enabled": enabled, "draw": f"{run.id}/1/11"}


JOBS = {
    "compare": lambda webui: {"compare": True},
    "draw": lambda webui: of_a_draft(webui, True),
    "draw, off": lambda webui: of_a_draft(webui, False),
    "drafts": lambda webui: {"drafts_only": True},
}


@pytest.mark.parametrize("ends", ["in order", "by an exception"])
@pytest.mark.parametrize("kind", JOBS)
def test_a_host_that_goes_through_one_job_again_finds_it_as_it_was_asked_for(host, decoded, kind, ends):  # noqa: F811
    p = a_job(init_images=[RED, BLUE], seed=-1, subseed=-1, do_not_save_samples=False, do_not_save_grid=False)
    asked = state_of(p)
    host.jobs.before(p)
    host.jobs.begin(p, "img2img", [{**FIXED, **JOBS[kind](host)}])
    host.jobs.before_batch(p, 0)
    if kind == "drafts":
        draft_alone(host, p)
    assert state_of(p) != asked
    if ends == "in order":
        host.jobs.end(p, "img2img", processed_of(p))
        assert state_of(p) == asked
    p.init_images = [BLUE, RED]  # as a host does that draws a folder of pictures
    host.jobs.before(p)
    assert state_of(p) == {**asked, "init_images": [BLUE, RED]}
    assert host.jobs.comparing is None


def draft_alone(host, p, batch=0):  # noqa: F811
    """A batch of two of a job whose drafts alone are made, as far as the host's hook behind sampling."""
    p.iteration = batch
    host.jobs.before_batch(p, batch)
    one = sampling(images=2)
    one.drew, one.iteration, one.no_drafts = False, batch, ""
    one.choices = [SeedChoice(11, None, SCORES, False, {}), None]
    p.attention_decoupling.passes.append(one)
    if hasattr(p, "enable_hr"):
        borrow(p, enable_hr=False)
    sampled = SimpleNamespace(samples=torch.randn(2, 4, 64, 64))
    host.jobs.after_sampling(p, sampled)
    return sampled.samples


def processed_of(p, images=(), first=0):
    return SimpleNamespace(
        images=list(images), infotexts=[f"of {k}" for k in range(len(images))], info="of 0",
        index_of_first_image=first, extra_generation_params={}, all_prompts=list(p.all_prompts),
        all_negative_prompts=list(p.all_negative_prompts), all_seeds=list(p.all_seeds),
        all_subseeds=list(p.all_subseeds),
    )  # fmt: skip


def test_a_batch_that_is_drawn_behind_drafts_alone_is_whole_and_saved(host, decoded):  # noqa: F811
    p = a_job(enable_hr=True, do_not_save_samples=False, do_not_save_grid=False, n_iter=2)
    p.all_prompts, p.all_seeds = [f"prompt {k}" for k in range(4)], [3, 4, 5, 6]
    host.jobs.begin(p, "txt2img", [{"drafts_only": True}])
    black = draft_alone(host, p)
    assert black.already_decoded
    assert (p.do_not_save_samples, p.enable_hr) == (True, True)
    p.iteration = 1
    host.jobs.before_batch(p, 1)
    assert (p.do_not_save_samples, p.do_not_save_grid, p.enable_hr) == (False, True, True)
    p.attention_decoupling.problem = "the model can't be read"  # as where nothing can be attached
    sampled = SimpleNamespace(samples=(was := torch.randn(2, 4, 64, 64)))
    host.jobs.after_sampling(p, sampled)
    assert sampled.samples is was
    processed = processed_of(p, [BLACK, BLACK, RED, BLUE])
    host.jobs.end(p, "txt2img", processed)
    assert processed.images == [RED, BLUE]
    assert (processed.infotexts, processed.info) == (["of 2", "of 3"], "of 2")
    assert (processed.all_seeds, processed.all_prompts) == ([5, 6], ["prompt 2", "prompt 3"])
    assert p.all_seeds == [3, 4, 5, 6]
    assert (p.do_not_save_samples, p.do_not_save_grid) == (False, False)


@pytest.mark.parametrize(("masks", "kept"), [((True, False), 2), ((True, True), 3), ((False, False), 1)])
def test_with_a_batch_that_was_not_drawn_its_masks_go_too(host, decoded, masks, kept):  # noqa: F811
    host.opts.return_mask, host.opts.return_mask_composite = masks
    p = a_job(n_iter=2, batch_size=1, mask_for_overlay=RED, do_not_save_samples=False, do_not_save_grid=False)
    p.all_prompts, p.all_seeds = ["a", "b"], [3, 4]
    host.jobs.begin(p, "img2img", [{"drafts_only": True}])
    draft_alone(host, p)
    p.attention_decoupling.problem = "the model can't be read"
    processed = processed_of(p, [BLACK] * kept + [RED] * kept)
    processed.infotexts = ["a", "b"]
    host.jobs.end(p, "img2img", processed)
    assert processed.images == [RED] * kept
    assert processed.infotexts == ["b"]


def test_the_last_parameters_have_what_was_asked_for_not_what_drafting_alone_does(host):  # noqa: F811
    def written(**given):
        p = a_job()
        host.jobs.begin(p, "txt2img", [given])
        found = {name: str(value) for name, value in p.extra_generation_params.items() if name.startswith("Decouple")}
        return p.attention_decoupling.settings, found

    for asked in ({"look": "tell"}, {"look": "insist", "gradient": "late"}, {"gradient": "exact", "size": 0.3}):
        of_picture = written(enabled=True, **asked)[1]
        settings, of_drafts = written(enabled=True, drafts_only=True, **asked)
        assert of_drafts == of_picture
        assert (settings.look, settings.gradient) == ("choose", asked.get("gradient", "exact"))  # guided as asked
    settings, of_drafts = written(enabled=False, drafts_only=True, look="tell")
    assert set(of_drafts) == set(infotext.RESULTS)  # nothing that turns us on when it is pasted
    assert (settings.enabled, settings.look, settings.gradient) == (True, "choose", "none")
