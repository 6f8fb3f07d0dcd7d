"""``look: insist`` in a real WebUI. Which drafts are accepted and what runs tell is scripted, as weights are random in
some hosts; all else is the host's own."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest
from PIL import ImageChops

from lib_decouple.hosts.seeds import seeds_to_draft
from tests.hosts.conftest import Host, Picture, encoded_alike
from tests.hosts.test_choose import assert_alike_refined, begun_with, farthest, of_kind, refined

INSIST = {"gradient": "none", "look": "insist"}
SCRIPTED = """
import importlib
from modules import sd_samplers_common, shared
module = lambda name: importlib.import_module("lib_decouple." + name)  # the hosts load adapters with the first job
Sampling, Sampler = module("hosts.sampling").SamplingPass, sd_samplers_common.Sampler

class Scripted:
    draft = module("core.presence").Level(1.6, 0.5, 10.0)
    most = 3
    def __init__(self, p):
        self.p, self.asked, self.seen = p, 0, []
    def accepts(self, scores, sigma):
        scores = tuple(scores)
        if scores not in self.seen:
            self.seen.append(scores)
        return accepted is None or self.seen.index(scores) in accepted
    def was_learned_of(self, entity):
        return True
    def probability(self, score, sigma):
        seeds = self.p.subseeds if self.p.subseed_strength else self.p.seeds
        image, entity = divmod(self.asked, 2)
        self.asked = (self.asked + 1) % (2 * len(seeds))
        if stop and runs > 1:
            setattr(shared.state, stop, True)
        return chances.get(int(seeds[image]), 0.9) if entity else 0.9

curves, runs = {}, 0
def curve(sampling):
    return curves.setdefault(id(sampling.p), Scripted(sampling.p))

def launch(sampler, *given, own=Sampler.launch_sampling):
    global runs
    runs += type(sampler.func).__name__ == "GuidedSampler"  # drafts stand there as a function
    if runs == failing:
        raise eval(error)
    return own(sampler, *given)

drafting = module("hosts.drafting")
def draft(*given, own=drafting.draft):
    if runs == out_of_drafts:
        raise eval(error)
    if runs == stop_drafts:
        shared.state.interrupted = True
    return own(*given)

kept["insist"] = Sampling.curve, Sampler.launch_sampling, drafting.draft
Sampling.curve, Sampler.launch_sampling, drafting.draft = curve, launch, draft
"""
AS_BEFORE = """
from lib_decouple.hosts import drafting
from lib_decouple.hosts.sampling import SamplingPass as Sampling
from modules.sd_samplers_common import Sampler
Sampling.curve, Sampler.launch_sampling, drafting.draft = kept.pop("insist")
"""
SMALL = {"width": 64, "height": 64, "steps": 4}
BAD = 0.2


@pytest.fixture(params=["host", "forge"])
def webui(request: pytest.FixtureRequest) -> Host:
    return request.getfixturevalue(request.param)


@pytest.fixture
def script(webui: Host) -> Iterator[Any]:
    """Sets what drafts and runs tell, and what fails, until the test is over; ``chances`` by seed, others have 0.9."""
    begun = []

    def begin(accepted: list[int] | None = None, chances: dict[int, float] | None = None, **more: Any) -> None:
        scope = {"stop": "", "failing": -1, "out_of_drafts": -1, "stop_drafts": -1, **more}
        scope.setdefault("error", 'MemoryError("out of memory")')
        webui.inside(SCRIPTED, accepted=accepted, chances=chances or {}, **scope)
        begun.append(True)

    yield begin
    if begun:
        webui.inside(AS_BEFORE)


def seeds(picture: Picture) -> list[int]:
    return [int(found[1]) for text in picture.infotexts if (found := re.search(r"[,\n ]Seed: (\d+)", text))]


def begun_again(picture: Picture, index: int = 0) -> list[int]:
    """The seeds that were given up."""
    return [int(one) for one in re.findall(r"seed (\d+)", picture.value("Decouple begun again", index) or "")]


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"sampler_name": "DDIM"},
        {"sampler_name": "Euler a"},
        {"sampler_name": "DPM++ 2M"},
        {"sampler_name": "DPM++ SDE"},
        {"prompt": "a cat AND a dog"},
        {"cfg_scale": 1},
    ],
    ids=["Euler", "DDIM", "Euler a", "DPM++ 2M", "DPM++ SDE", "AND", "no CFG"],
)
def test_a_run_that_lacks_an_entity_is_begun_again_and_its_seed_draws_the_same_without_us(webui, script, more):
    candidates = seeds_to_draft(40, 4)
    script([1, 3], {candidates[1]: BAD})
    picture = webui.draw(INSIST, seed=40, **more)
    assert seeds(picture) == [candidates[3]]
    assert begun_again(picture) == [candidates[1]]
    assert picture.value("Decouple asked seed") == "40"
    assert picture.value("Decouple stood aside") is None
    assert picture.value("Decouple not insisted") is None
    assert picture.pixels == webui.draw(seed=candidates[3], **more).pixels
    (one,) = webui.get("/decouple/v1/trace/last")["images"]
    choice = one["passes"][0]["choice"]
    assert (choice["asked"], choice["drawn"], choice["accepted"]) == (40, candidates[3], True)
    assert [draft["seed"] for draft in choice["drafts"]] == candidates
    assert [run["seed"] for run in choice["runs"]] == [candidates[1], candidates[3]]


def test_no_more_is_drafted_than_until_one_is_accepted_and_nothing_begun_again_that_lacks_nothing(webui, script):
    script([1])
    picture = webui.draw(INSIST, seed=40, **SMALL)
    (drawn,) = seeds(picture)
    assert (drawn, begun_again(picture)) == (seeds_to_draft(40, 2)[1], [])
    (one,) = webui.get("/decouple/v1/trace/last")["images"]
    assert len(one["passes"][0]["choice"]["drafts"]) == 2
    assert picture.pixels == webui.draw(seed=drawn, **SMALL).pixels


@pytest.mark.parametrize(("restarts", "given_up"), [(0, []), (1, [1]), (3, [1, 2, 3])])
def test_the_surest_run_is_delivered(webui, script, restarts, given_up):
    candidates = seeds_to_draft(40, 4)
    script(None, dict(zip(candidates, (0.4, 0.3, 0.2, 0.1))))
    picture = webui.draw({**INSIST, "restarts": restarts}, seed=40, **SMALL)
    assert seeds(picture) == [40]
    assert begun_again(picture) == [candidates[k] for k in given_up]
    assert picture.pixels == webui.draw(seed=40, **SMALL).pixels


def test_guided_it_is_what_guidance_draws_from_that_seed(webui, script):
    second = seeds_to_draft(40, 2)[1]
    script(None, {40: BAD})
    guided = {"gradient": "exact", "loss": "intensity", "steps": 2}
    picture = webui.draw({**guided, "look": "insist"}, seed=40)
    alone = webui.draw({**guided, "look": "tell"}, seed=second)
    assert (seeds(picture), begun_again(picture)) == ([second], [40])
    assert picture.pixels == alone.pixels
    assert picture.value("Decouple moved") == alone.value("Decouple moved") is not None


def test_hires_fix_goes_on_with_the_seed_that_was_begun_with_last(webui, script):
    hires = {"enable_hr": True, "hr_scale": 1.5, "hr_upscaler": webui.upscaler, "denoising_strength": 0.7}
    if webui.name == "forge":
        hires["hr_additional_modules"] = ["Use same choices"]
    script(None, {40: BAD})
    picture = webui.draw(INSIST, seed=40, **SMALL, **hires)
    assert seeds(picture) == [seeds_to_draft(40, 2)[1]]
    assert picture.pixels == webui.draw(seed=seeds(picture)[0], **SMALL, **hires).pixels


def test_of_a_variation_its_own_seed_is_begun_with(webui, script):
    more, second = {"subseed": 70, "subseed_strength": 0.6, **SMALL}, seeds_to_draft(70, 2)[1]
    script(None, {70: BAD})
    picture = webui.draw(INSIST, seed=40, **more)
    assert (seeds(picture), picture.value("Variation seed")) == ([40], str(second))
    assert picture.value("Decouple asked variation seed") == "70"
    assert picture.pixels == webui.draw(seed=40, **{**more, "subseed": second}).pixels


def test_a_run_is_begun_again_by_the_first_model_where_the_refiner_takes_over_later(webui, script):
    more, second = refined(webui, 0.8), seeds_to_draft(40, 2)[1]
    script(None, {40: BAD})
    picture = webui.draw(INSIST, seed=40, **more)
    assert (seeds(picture), begun_again(picture)) == ([second], [40])
    assert picture.value("Decouple not insisted") is None
    assert_alike_refined(webui, picture, webui.draw(seed=second, **more))
    assert farthest(picture, webui.draw(seed=second, **{**SMALL, "steps": 8})) > 1


def test_a_refiner_that_takes_over_before_it_is_told_is_left_its_run_and_that_is_said(webui, script):
    more = refined(webui, 0.1)
    script(None, {40: BAD})
    picture = webui.draw(INSIST, seed=40, **more)
    assert (seeds(picture), begun_again(picture)) == ([40], [])
    assert "refiner" in str(picture.value("Decouple not insisted"))
    assert_alike_refined(webui, picture, webui.draw(seed=40, **more))


def test_hires_fix_of_variations_goes_on_with_the_seed_that_was_begun_with_last(webui, script):
    hires = {"enable_hr": True, "hr_scale": 1.5, "hr_upscaler": webui.upscaler, "denoising_strength": 0.7}
    if webui.name == "forge":
        hires["hr_additional_modules"] = ["Use same choices"]
    more, second = {**SMALL, **hires, "subseed_strength": 0.6, "sampler_name": "Euler a"}, seeds_to_draft(70, 2)[1]
    script(None, {70: BAD})
    picture = webui.draw(INSIST, seed=40, subseed=70, **more)
    assert (seeds(picture), picture.value("Variation seed")) == ([40], str(second))
    assert picture.pixels == webui.draw(seed=40, subseed=second, **more).pixels


def test_of_several_batches_each_image_that_lacks_nothing_keeps_its_own_seed(webui, script):
    script(None, {40: BAD, 43: BAD})
    picture = webui.draw(INSIST, seed=40, n_iter=2, batch_size=2, **SMALL)
    first = len(picture.images) - 4  # behind a grid
    assert seeds(picture)[-4:] == [seeds_to_draft(40, 2)[1], 41, 42, seeds_to_draft(43, 2)[1]]
    assert [begun_again(picture, first + k) for k in range(4)] == [[40], [], [], [43]]
    for k, seed in enumerate(seeds(picture)[-4:]):
        own, alone = picture.images[first + k].convert("RGB"), webui.draw(seed=seed, **SMALL).images[0].convert("RGB")
        assert max(high for _, high in ImageChops.difference(own, alone).getextrema()) <= 1  # a batch rounds otherwise


@pytest.mark.parametrize(
    "fault", [{"failing": 2}, {"out_of_drafts": 1}], ids=["in the second attempt", "in the drafts for it"]
)
def test_memory_that_ends_later_delivers_the_surest_run_and_says_so(webui, script, fault):
    script(None, {40: BAD}, **fault)
    picture = webui.draw(INSIST, seed=40, **SMALL)
    assert seeds(picture) == [40]
    assert "out of memory" in str(picture.value("Decouple not insisted"))
    assert picture.pixels == webui.draw(seed=40, **SMALL).pixels


def test_memory_that_ends_in_the_first_drafts_draws_the_seed_that_was_asked_for_and_says_so(webui, script):
    script([3], {40: BAD}, out_of_drafts=0)
    picture = webui.draw(INSIST, seed=40, **SMALL)
    assert seeds(picture) == [40]
    assert "out of memory" in str(picture.value("Decouple no drafts"))
    assert picture.pixels == webui.draw(seed=40, **SMALL).pixels


@pytest.mark.parametrize(
    ("how", "drawn"),
    [({"stop": "interrupted"}, 1), ({"stop": "skipped"}, 1), ({"stop_drafts": 1}, 0), ({"stop_drafts": 0}, 0)],
    ids=["interrupted in the second attempt", "skipped there", "in the drafts for it", "in the first drafts"],
)
def test_a_job_that_is_stopped_ends_with_a_picture_and_leaves_nothing_behind(webui, script, how, drawn):
    expected = webui.draw(seed=40, **SMALL)
    script(None, {40: BAD}, **how)
    stopped = webui.draw(INSIST, seed=40, **SMALL)
    assert seeds(stopped) == [seeds_to_draft(40, 2)[drawn]]
    assert len(stopped.images) == 1
    webui.inside(AS_BEFORE)
    again = webui.draw(seed=40, **SMALL)
    script()
    assert again.pixels == expected.pixels


def test_a_checkpoint_of_which_nothing_was_learned_has_its_best_draft_drawn_and_is_told_so(webui):
    load = "from lib_decouple.hosts.sampling import SamplingPass\n"
    webui.inside(f"{load}kept['curve'] = SamplingPass.curve\nSamplingPass.curve = lambda self: None")
    try:
        insisted, chosen = (webui.draw({**INSIST, "look": look}, seed=40, **SMALL) for look in ("insist", "choose"))
    finally:
        webui.inside(f"{load}SamplingPass.curve = kept.pop('curve')")
    assert (insisted.pixels, seeds(insisted)) == (chosen.pixels, seeds(chosen))
    assert "nobody has learned" in str(insisted.value("Decouple not insisted"))
    assert chosen.value("Decouple not insisted") is None


@pytest.mark.parametrize("masked", [False, True], ids=["img2img", "inpainting"])
@pytest.mark.parametrize("sampler", ["Euler", "DDIM", "Euler a"])
def test_a_run_of_img2img_is_begun_again_and_its_seed_draws_the_same_without_us(webui, script, sampler, masked):
    more = begun_with(webui, masked, sampler_name=sampler, steps=8)
    candidates = seeds_to_draft(40, 4)
    script([1, 3], {candidates[1]: BAD})
    picture = encoded_alike(webui, INSIST, seed=40, **more)
    assert (seeds(picture), begun_again(picture)) == ([candidates[3]], [candidates[1]])
    assert picture.value("Decouple asked seed") == "40"
    assert picture.value("Decouple not insisted") is None
    assert picture.pixels == encoded_alike(webui, seed=candidates[3], **more).pixels


def test_memory_that_ends_in_a_second_attempt_of_img2img_delivers_the_surest(webui, script):
    more = begun_with(webui, True, steps=8)
    script(None, {40: BAD}, failing=2)
    picture = encoded_alike(webui, INSIST, seed=40, **more)
    assert seeds(picture) == [40]
    assert "out of memory" in str(picture.value("Decouple not insisted"))
    assert picture.pixels == encoded_alike(webui, seed=40, **more).pixels


@pytest.mark.parametrize(
    "fault", [{"failing": 2}, {"out_of_drafts": 1}, {"out_of_drafts": 0}],
    ids=["in the second attempt", "in the drafts for it", "in the first drafts"],
)  # fmt: skip
@pytest.mark.parametrize("error", ['MemoryError("out of memory")', 'RuntimeError("broken")'], ids=["memory", "other"])
@pytest.mark.parametrize("kind", ["two batches", "img2img", "hires fix"])
def test_whatever_fails_a_picture_of_the_seed_that_was_asked_for_is_delivered_and_it_is_said(
    webui, script, kind, error, fault
):
    more = of_kind(webui, kind) | ({"steps": 8} if kind == "img2img" else {})
    expected = encoded_alike(webui, seed=40, **more)
    script(None, {40: BAD}, error=error, **fault)
    picture = encoded_alike(webui, INSIST, seed=40, **more)
    key = "Decouple no drafts" if fault.get("out_of_drafts") == 0 else "Decouple not insisted"
    first = len(picture.images) - more.get("n_iter", 1)  # behind a grid
    assert ("out of memory" if "memory" in error else "unexpected error") in str(picture.value(key, first))
    assert seeds(picture)[first] == 40
    assert picture.pixels[first] == expected.pixels[first]


@pytest.mark.parametrize(
    ("how", "drawn"),
    [({"stop": "interrupted"}, 1), ({"stop": "skipped"}, 1), ({"stop_drafts": 1}, 0), ({"stop_drafts": 0}, 0)],
    ids=["interrupted in the second attempt", "skipped there", "in the drafts for it", "in the first drafts"],
)
@pytest.mark.parametrize("kind", ["img2img", "hires fix"])
def test_a_job_of_any_kind_that_is_stopped_ends_with_a_picture_and_leaves_nothing_behind(
    webui, script, kind, how, drawn
):
    more = of_kind(webui, kind) | ({"steps": 8} if kind == "img2img" else {})
    expected = encoded_alike(webui, seed=40, **more)
    script(None, {40: BAD}, **how)
    stopped = encoded_alike(webui, INSIST, seed=40, **more)
    assert seeds(stopped) == [seeds_to_draft(40, 2)[drawn]]
    assert len(stopped.images) == 1
    webui.inside(AS_BEFORE)
    again = encoded_alike(webui, seed=40, **more)
    script()
    assert again.pixels == expected.pixels
