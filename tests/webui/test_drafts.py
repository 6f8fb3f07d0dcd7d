"""The drafts of kept runs: what is told of them, and drawing one of them."""

from __future__ import annotations

import io
import json
import sys
import types
from dataclasses import replace
from types import SimpleNamespace

import pytest

fastapi = pytest.importorskip("fastapi", reason="fastapi is not installed")
pytest.importorskip("httpx", reason="httpx is not installed")
import torch  # noqa: E402
from fastapi.testclient import TestClient  # noqa: E402
from PIL import Image  # noqa: E402

from lib_decouple.hosts.seeds import SeedChoice  # noqa: E402
from lib_decouple.settings import FIXED, Settings  # noqa: E402
from lib_decouple.webui import api, drafts, infotext  # noqa: E402
from lib_decouple.webui.report import Run  # noqa: E402
from lib_decouple.webui.runs import Runs, UnknownRun, of_job  # noqa: E402

from .test_jobs import host  # noqa: E402, F401
from .test_jobs import job as host_s_job  # noqa: E402
from .test_runs import MINE, client, sampling  # noqa: E402

RED, BLUE = (Image.new("RGB", (600, 300), colour) for colour in ("red", "blue"))
SCORES = {
    11: {"cat": 0.3, "dog": 0.2}, 12: {"cat": 0.9, "dog": 0.1}, 13: {"cat": float("nan"), "dog": 0.9},
    14: {"cat": 0.25, "dog": 0.6}, 15: {"cat": 0.2, "dog": 0.3},
}  # fmt: skip


GUIDED = Settings(enabled=True, **FIXED)


def drafted(variation=False, p=None, settings=GUIDED, **given):
    """A run of two images, the second of which was drafted, of a job ``p``."""
    one = sampling(images=2)
    one.choices = [None, SeedChoice(11, 14, SCORES, variation, {11: RED, 14: BLUE})]
    p = p or SimpleNamespace(
        batch_size=2, width=512, height=512, sampler_name="Euler", cfg_scale=7, steps=20,
        all_prompts=["a", "a cat and a dog"], all_negative_prompts=["no", "rain"], all_seeds=[10, 14],
        all_subseeds=[70, 71], all_hr_prompts=None,
    )  # fmt: skip
    return of_job(
        Run(replace(settings, look="choose"), [one], owner=MINE), p, **{"tab": "txt2img", "pictures": {}, **given}
    )


@pytest.fixture
def kept():
    runs, run = Runs(), drafted()
    runs.keep(run, 5)
    return runs, run


def test_an_image_s_drafts_are_told_best_first(kept):
    runs, run = kept
    web = client(runs=runs)
    told = web.get(f"/decouple/v1/drafts/{run.id}").json()
    assert told == web.get("/decouple/v1/drafts/last").json()
    (image,) = told["images"]
    assert {key: image[key] for key in ("number", "prompt", "asked", "drawn", "variation")} == {
        "number": 1, "prompt": "a cat and a dog", "asked": 11, "drawn": 14, "variation": False,
    }  # fmt: skip
    # 11 and 15 are equal, and 11 was drafted first; what is no number is behind all others
    assert [one["seed"] for one in image["drafts"]] == [14, 11, 15, 12, 13]
    assert [one["rank"] for one in image["drafts"]] == [1, 2, 3, 4, 5]
    assert [one["weakest"] for one in image["drafts"]] == ["cat", "dog", "cat", "dog", "cat"]
    assert [one["drawn"] for one in image["drafts"]] == [True, False, False, False, False]
    assert [one["picture"] for one in image["drafts"]] == [True, True, False, False, False]
    assert image["drafts"][4]["scores"] == {"cat": None, "dog": 0.9}


def test_a_draft_s_picture(kept):
    runs, run = kept
    web = client(runs=runs)
    answer = web.get(f"/decouple/v1/drafts/{run.id}/1/14.jpg")
    assert answer.headers["content-type"] == "image/jpeg"
    picture = Image.open(io.BytesIO(answer.content))
    assert picture.size == (256, 128)
    r, g, b = picture.getpixel((9, 9))
    assert b > 200 > 50 > max(r, g)
    for path in ("1/12.jpg", "0/14.jpg", "9/14.jpg"):
        assert web.get(f"/decouple/v1/drafts/{run.id}/{path}").status_code == 404
    for path in ("nobody/1/14.jpg", "nobody"):
        assert web.get(f"/decouple/v1/drafts/{path}").status_code == 404
    assert (
        web.get("/decouple/v1/drafts/last", headers={"X-Decouple-Caller": "somebody else, whoever"}).status_code == 404
    )


def test_pictures_of_drafts_count_as_memory():
    run = drafted()
    assert run.images[1].size - sum(map(len, run.images[1].drafts.values())) > 0
    bare = drafted()
    bare.images[1].drafts.clear()
    assert run.images[1].size - bare.images[1].size == sum(map(len, run.images[1].drafts.values())) > 500


def test_a_run_without_drafts_has_none():
    runs = Runs()
    one = sampling()
    one.choices = [None, None]
    p = SimpleNamespace(batch_size=2, all_prompts=["a", "b"], all_seeds=[5, 6])
    runs.keep(of_job(Run(Settings(enabled=True), [one], owner=MINE), p, "txt2img", {}), 5)
    assert client(runs=runs).get("/decouple/v1/drafts/last").json()["images"] == []


def a_job(**given):
    made = host_s_job(6)
    made.n_iter, made.batch_size = 3, 2
    made.all_prompts = [f"prompt {k}" for k in range(6)]
    made.all_hr_prompts, made.all_hr_negative_prompts = [f"hires {k}" for k in range(6)], ["none"] * 6
    made.width, made.height, made.sampler_name, made.cfg_scale = 512, 512, "Euler", 7
    vars(made).update(given)
    return made


@pytest.mark.parametrize("variation", [False, True])
def test_a_job_draws_the_draft_alone_with_its_image_s_prompts(host, variation):  # noqa: F811
    run = drafted(variation)
    host.jobs.runs.keep(run, 5)
    host.state.job_count = 3
    p = a_job()
    host.jobs.begin(p, "txt2img", [{"enabled": True, **FIXED, "look": "choose", "draw": f"{run.id}/1/11"}])
    assert (p.n_iter, p.batch_size, host.state.job_count) == (1, 1, 1)
    assert (p.all_prompts, p.all_negative_prompts) == (["a cat and a dog"], ["rain"])
    assert (p.all_hr_prompts, p.all_hr_negative_prompts) == (["a cat and a dog"], ["rain"])
    assert (p.all_seeds, p.all_subseeds) == (([14], [11]) if variation else ([11], [71]))
    assert (p.seed, p.subseed) == (p.all_seeds[0], p.all_subseeds[0])
    assert p.attention_decoupling.settings.look == "tell"
    assert p.attention_decoupling.notes == p.comments == []


@pytest.mark.parametrize("enabled", [True, False])
def test_what_another_script_draws_within_that_job_is_left_alone(host, enabled):  # noqa: F811
    run = drafted()
    host.jobs.runs.keep(run, 5)
    args = [{"enabled": enabled, "draw": f"{run.id}/1/11"}]
    host.jobs.begin(a_job(), "txt2img", args)
    inner = a_job()
    host.jobs.begin(inner, "img2img", args)
    assert (inner.n_iter, inner.all_seeds) == (3, [3] * 6)
    assert not getattr(inner.attention_decoupling, "problem", "")
    host.state.time_start = 2.0  # another job
    again = a_job()
    host.jobs.begin(again, "txt2img", args)
    assert again.all_seeds == [11]


def test_what_is_otherwise_than_when_it_was_drafted_is_told(host):  # noqa: F811
    run = drafted()
    host.jobs.runs.keep(run, 5)
    p = a_job(width=768, cfg_scale=4)
    host.jobs.begin(p, "txt2img", [{"enabled": True, **FIXED, "draw": f"{run.id}/1/11"}])
    assert p.all_seeds == [11]
    told = p.attention_decoupling.notes
    assert ["The size is 768x512" in told[0], "with 512x512" in told[0]] == [True, True]
    assert "The CFG scale is 4" in told[1]
    assert len(told) == len(p.comments) == 2


@pytest.mark.parametrize(
    ("drafted_with", "drawn_with", "steps", "told"),
    [
        ({}, {}, 20, None),
        ({}, {"look": "tell", "drafts": 8, "recompute": "on"}, 20, None),
        ({}, {"enabled": False}, 20, ("is none", "with loss com, ", "size 0.15", "20 steps in all")),
        ({}, {"gradient": "none"}, 20, ("is none", "20 steps in all")),
        ({"gradient": "none"}, {"gradient": "none"}, 30, None),
        ({"enabled": False}, {"enabled": False}, 30, None),
        ({}, {"size": 0.4}, 20, ("size 0.4", "size 0.15")),
        ({}, {}, 30, ("30 steps in all", "20 steps in all")),
        ({"gradient": "none"}, {}, 20, ("size 0.15", "with none")),
    ],
)
def test_other_guidance_than_a_draft_had_is_told(host, drafted_with, drawn_with, steps, told):  # noqa: F811
    run = drafted(settings=replace(GUIDED, **drafted_with))
    host.jobs.runs.keep(run, 5)
    p = a_job(steps=steps)
    host.jobs.begin(p, "txt2img", [{"enabled": True, **FIXED, **drawn_with, "draw": f"{run.id}/1/11"}])
    assert p.all_seeds == [11]
    notes = [comment for comment in p.comments if "The guidance" in comment]
    assert len(notes) == bool(told) == len(p.comments)
    assert all(part in notes[0] for part in told or ())


def otherwise(run):
    scripts = SimpleNamespace(selectable_scripts=[SimpleNamespace(title=lambda: "X/Y/Z plot")])
    return {
        "unknown run": ("txt2img", f"{'x' * 22}/1/11", {}, "is not kept"),
        "another image": ("txt2img", f"{run.id}/0/11", {}, "image 0 of this run has no draft of seed 11"),
        "another seed": ("txt2img", f"{run.id}/1/10", {}, "no draft of seed 10"),
        "another tab": ("img2img", f"{run.id}/1/11", {}, "made in txt2img, not in img2img"),
        "a script": ("txt2img", f"{run.id}/1/11", {"scripts": scripts, "script_args": [1]}, "X/Y/Z plot"),
        "last": ("txt2img", "last/1/11", {}, "can't be told"),
    }


@pytest.mark.parametrize("case", otherwise(SimpleNamespace(id="")))
def test_what_can_t_be_drawn_is_told_and_the_job_drawn_as_it_is(host, case):  # noqa: F811
    run = drafted()
    host.jobs.runs.keep(run, 5)
    tab, draw, given, told = otherwise(run)[case]
    p = a_job(**given)
    host.jobs.begin(p, tab, [{"enabled": True, "draw": draw}])
    assert told in p.attention_decoupling.problem
    assert (p.n_iter, p.batch_size, p.all_seeds) == (3, 2, [3] * 6)


def test_another_picture_to_begin_with_is_told(host):  # noqa: F811
    def img2img(**given):
        return a_job(init_images=[RED], image_mask=None, denoising_strength=0.6, **given)

    run = drafted(p=img2img(all_prompts=["a", "a cat and a dog"]), tab="img2img")
    host.jobs.runs.keep(run, 5)
    args = [{"enabled": True, **FIXED, "draw": f"{run.id}/1/11"}]
    begun_with = ["picture that it begins with"]
    cases = [
        ({}, []), ({"init_images": [BLUE]}, begun_with), ({"image_mask": BLUE}, begun_with),
        ({"denoising_strength": 0.7}, ["denoising strength"]),
    ]  # fmt: skip
    for number, (given, told) in enumerate(cases):
        host.state.time_start = 10.0 + number
        p = img2img()
        vars(p).update(given)
        host.jobs.begin(p, "img2img", args)
        assert p.all_seeds == [11]
        notes = p.attention_decoupling.notes
        assert len(notes) == len(told)
        assert all(part in note for part, note in zip(told, notes))


def test_of_a_batch_each_image_s_draft_begins_with_its_own_picture(host):  # noqa: F811
    run = drafted(p=a_job(init_images=[RED, BLUE], all_prompts=["a", "a cat and a dog"]), tab="img2img")
    host.jobs.runs.keep(run, 5)
    p = a_job(init_images=[RED, BLUE])
    host.jobs.begin(p, "img2img", [{"enabled": True, **FIXED, "draw": f"{run.id}/1/11"}])
    assert (p.init_images, p.batch_size) == ([BLUE], 1)
    assert p.attention_decoupling.notes == []


@pytest.fixture
def decoded(host, monkeypatch):  # noqa: F811
    """The host's own list of pictures that need no decoding; nothing is kept of masks."""

    class DecodedSamples(list):
        already_decoded = True

    processing = types.ModuleType("modules.processing")
    processing.DecodedSamples = DecodedSamples
    monkeypatch.setitem(sys.modules, "modules.processing", processing)
    host.opts.return_mask = host.opts.return_mask_composite = False


@pytest.mark.parametrize("enabled", [False, True])
def test_drafts_alone_end_with_no_picture_and_are_kept(host, decoded, enabled):  # noqa: F811
    p = a_job(n_iter=1, batch_size=2, iteration=0, do_not_save_samples=False, do_not_save_grid=False)
    p.all_prompts, p.all_seeds = ["a", "a cat and a dog"], [10, 11]
    host.jobs.begin(p, "txt2img", [{"enabled": enabled, "look": "insist", "drafts_only": True}])
    run = p.attention_decoupling
    asked = run.settings
    assert (asked.enabled, asked.look, asked.gradient) == (True, "choose", "exact" if enabled else "none")
    assert host.jobs._looking(run, p).draws is False
    one = sampling(images=2)
    one.drew, one.iteration, one.choices = False, 0, [None, SeedChoice(11, None, SCORES, False, {11: RED, 14: BLUE})]
    one.no_drafts = ""
    run.passes = [one]
    sampled = SimpleNamespace(samples=torch.randn(2, 4, 64, 64))
    host.jobs.after_sampling(p, sampled)
    assert torch.stack(sampled.samples).shape == (2, 3, 512, 512)
    assert (sampled.samples.already_decoded, p.do_not_save_samples, p.do_not_save_grid) == (True, True, True)
    processed = SimpleNamespace(
        images=[RED, RED, RED], infotexts=["grid", "a", "b"], info="a", index_of_first_image=1,
        extra_generation_params={}, all_prompts=p.all_prompts, all_seeds=p.all_seeds,
    )  # fmt: skip
    host.jobs.end(p, "txt2img", processed)
    assert (processed.images, processed.infotexts, processed.info) == ([], [], "")
    kept = host.jobs.runs.get(run.id)
    told = drafts.ranked(kept.images[1])
    assert [one["seed"] for one in told] == [14, 11, 15, 12, 13]
    assert not any(one["drawn"] for one in told)
    lines, _ = host.jobs.status_of(json.dumps({"extra_generation_params": {infotext.RUN: run.id}}))
    assert "5 seeds drafted, 14 is the best by attention; nothing was drawn" in " ".join(lines)
    assert "stood aside" not in " ".join(lines)
    assert processed.extra_generation_params.get(infotext.STOOD_ASIDE) is None
    assert {one["stood_aside"] for image in kept.images for one in image.passes} == {""}
    assert processed.extra_generation_params.get(infotext.ASKED) is None


def test_where_no_run_is_kept_drafts_alone_say_so(host):  # noqa: F811
    host.opts.data = {"decouple_keep_traces": 0}
    for only in (True, False):
        p = a_job()
        host.jobs.begin(p, "txt2img", [{"enabled": True, "drafts_only": only}])
        notes = p.attention_decoupling.notes
        assert ["No draft is kept" in note for note in notes] == [True] * only


def test_a_picture_that_was_drawn_though_drafts_alone_were_wanted_is_delivered(host):  # noqa: F811
    p = a_job(iteration=0)
    host.jobs.begin(p, "txt2img", [{"drafts_only": True}])
    run = p.attention_decoupling
    run.problem = "the model can't be read"
    sampled = SimpleNamespace(samples=(was := torch.randn(2, 4, 64, 64)))
    host.jobs.after_sampling(p, sampled)
    processed = SimpleNamespace(
        images=[RED], infotexts=["a"], info="a", index_of_first_image=0, extra_generation_params={}
    )
    host.jobs.end(p, "txt2img", processed)
    assert sampled.samples is was
    assert (processed.images, processed.infotexts) == ([RED], ["a"])


def test_beside_a_script_that_draws_drafts_alone_are_refused(host):  # noqa: F811
    scripts = SimpleNamespace(selectable_scripts=[SimpleNamespace(title=lambda: "X/Y/Z plot")])
    p = a_job(scripts=scripts, script_args=[1])
    host.jobs.begin(p, "txt2img", [{"drafts_only": True}])
    assert "X/Y/Z plot" in p.attention_decoupling.problem
    assert not p.attention_decoupling.drafts_only
    request = {"alwayson_scripts": {"attention decoupling": {"args": [{"drafts_only": True}]}}}
    assert api.problem_of(request) == ""
    assert "X/Y/Z plot" in api.problem_of({**request, "script_name": "X/Y/Z plot"})


@pytest.mark.parametrize("more", [{"compare": True}, {"draw": "a-_9/3/-12"}, {"drafts_only": "yes"}])
def test_drafts_alone_are_not_wanted_beside_what_draws(more):
    with pytest.raises(ValueError, match=r"drafts_only: .* is not allowed"):
        api.arguments_from([{"drafts_only": True, **more}])
    assert api.arguments_from([{"drafts_only": True}]).drafts_only


@pytest.mark.parametrize(
    "text", ["x", "a/b/c", "a/0", "a/0/1/2", "a/-1/3", "/0/1", "a/0/1\n", 7, None, ["a/0/1"], "a/0/³"]
)
def test_a_draft_that_is_not_named_as_one_is_refused(text):
    with pytest.raises(ValueError, match=r"draw: .* is not allowed; RUN/IMAGE/SEED"):
        api.arguments_from([{"draw": text}])


def test_a_draft_is_named():
    assert api.arguments_from([{"draw": "a-_9/3/-12"}]).draw == drafts.Wanted("a-_9", 3, -12)
    assert api.arguments_from([{"draw": ""}]).draw is api.arguments_from([{}]).draw is None


def test_a_request_for_what_is_not_kept_is_answered_before_anything_is_drawn(host):  # noqa: F811
    app, run = fastapi.FastAPI(), drafted()
    host.jobs.runs.keep(run, 5)

    @app.post("/sdapi/v1/txt2img")
    def draw() -> str:
        return "drawn"

    api.check_requests(app, problem_of_draft=host.jobs.problem_of_draft)
    web = TestClient(app)

    def answer(text, **more):
        scripts = {"attention decoupling": {"args": [{"draw": text}]}}
        return web.post("/sdapi/v1/txt2img", content=json.dumps({"alwayson_scripts": scripts, **more}))

    assert answer(f"{run.id}/1/11").json() == "drawn"
    assert answer(f"{run.id}/1/99").status_code == answer(f"{'x' * 22}/1/11").status_code == 422
    assert "no draft of seed 99" in answer(f"{run.id}/1/99").json()["detail"]
    assert "X/Y/Z plot" in answer(f"{run.id}/1/11", script_name="X/Y/Z plot").json()["detail"]


def test_the_oldest_run_that_is_dropped_takes_its_drafts_along():
    runs, run = Runs(), drafted()
    runs.keep(run, 1)
    runs.keep(drafted(), 1)
    with pytest.raises(UnknownRun):
        runs.get(run.id)
