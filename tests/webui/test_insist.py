"""``look: insist`` around the stand-ins of A1111 and Forge: which run is delivered, and what the host is left with."""

from __future__ import annotations

import itertools
import sys
import weakref
from dataclasses import dataclass, field, replace

import pytest
import torch

from lib_decouple.core.drafts import Draft
from lib_decouple.core.gradient import LossScale
from lib_decouple.core.presence import Curve, Level
from lib_decouple.hosts.seeds import seeds_to_draft
from lib_decouple.settings import Settings

from .test_choose import (  # noqa: F401
    MASK,
    PROMPT,
    Activations,
    Sampler,
    a1111_unet,
    counted,
    forge_unet,
    job_of,
    sampled,
    webui,
)

# ruff: noqa: F811

STEPS = 20
"""So many that a run has a pass at which it is told what is there, and one behind that."""
INSIST = Settings(enabled=True, look="insist", entities=("cat", "dog"), gradient="none")
SEEDS = seeds_to_draft(3, 4)
GOOD, BAD = 0.9, 0.2


@dataclass
class Scripted:
    """A checkpoint's curve that answers by the seed that is drawn; a draft above 0.5 is accepted."""

    job: object
    chances: dict[int, float]
    runs: list[list[int]] = field(default_factory=list)
    """The seeds of each run that was asked of."""
    asked: int = 0

    draft = Level(1.6, 0.5, 1000.0)
    most = 3

    def accepts(self, scores, sigma):
        return Curve((self.draft,), self.draft).accepts(scores, sigma)

    def was_learned_of(self, entity):
        return True

    def probability(self, score, sigma):
        seeds = list(self.job.seeds)
        image, entity = divmod(self.asked, 2)
        self.asked = (self.asked + 1) % (2 * len(seeds))
        if (image, entity) == (0, 0):
            self.runs.append(seeds)
        return self.chances.get(seeds[image], GOOD) if entity else GOOD


@pytest.fixture
def insist(webui, monkeypatch):
    """Draws with drafts of the given scores, one row a candidate, and runs of the given chances, by seed."""
    drafting = sys.modules["lib_decouple.hosts.drafting"]

    def drawn(drafts, chances=None, settings=INSIST, seeds=(3,), prepare=None, sampler=Sampler, **given):
        job, x = job_of(webui, [PROMPT] * len(seeds), seeds, steps=STEPS, **given)
        job.sampler = sampler(job)
        left, drafted = list(drafts), []

        def scripted(denoise, x, sigmas, model, reader, rows, *moving):
            scores = left.pop(0)
            if isinstance(scores, Exception):
                raise scores
            denoise(x, sigmas[0])
            drafted.append(scores)
            return [Draft({"cat": GOOD, "dog": own}, x[row]) for row, own in enumerate(scores)]

        monkeypatch.setattr(drafting, "draft", scripted)
        curve = Scripted(job, chances or {})
        monkeypatch.setattr(webui.adapter.SamplingPass, "curve", lambda self: curve)
        sampling = webui.adapter.SamplingPass(job, settings)
        sampling.attach(x)
        if prepare:
            prepare(job)
        found = sampled(job, x)
        assert not {"sample", "sample_img2img"} & set(vars(job.sampler))
        return found, job, sampling, curve, len(drafted)

    return drawn


def plain(webui, *seeds, **given):
    """As the host draws by itself."""
    job, x = job_of(webui, [PROMPT] * len(seeds), seeds, steps=STEPS, **given)
    return sampled(job, x), job


def state_of(webui):
    return webui.shared.state.job_no, webui.shared.state.job_count


@pytest.mark.parametrize(
    ("drafts", "number", "told"),
    [
        ([0.6], 0, "the seed asked for, 3, accepted by its draft"),
        ([0.3, 0.7], 1, f"seed {SEEDS[1]} drawn, accepted by its draft, instead of 3"),
        ([0.3, 0.1, 0.4, 0.2], 2, f"seed {SEEDS[2]} drawn, best of 4 drafts by attention, instead of 3"),
    ],
    ids=["the first is accepted", "the second is", "none is"],
)
def test_the_first_draft_that_is_accepted_is_drawn_and_no_more_are_made(webui, insist, drafts, number, told):
    torch.manual_seed(99)
    found, job, sampling, curve, made = insist([[own] for own in drafts])
    after = torch.random.get_rng_state()
    torch.manual_seed(99)
    expected, other = plain(webui, SEEDS[number])
    assert torch.equal(found, expected)
    assert torch.equal(torch.random.get_rng_state(), after)
    assert torch.equal(job.rng.next(), other.rng.next())
    assert (job.seeds, job.all_seeds, curve.runs[0]) == ([SEEDS[number]],) * 3
    (choice,) = sampling.choices
    assert (choice.words(), made, choice.begun_again()) == (told, len(drafts), "")
    assert (sampling.not_insisted, sampling.no_drafts, job.comments) == ("", "", [])
    assert state_of(webui) == (1, 2)


def test_a_run_that_lacks_an_entity_is_begun_again_from_the_next_noise(webui, insist):
    torch.manual_seed(99)
    found, job, sampling, curve, made = insist([[0.3], [0.7], [0.2], [0.8]], {SEEDS[1]: BAD})
    after = torch.random.get_rng_state()
    torch.manual_seed(99)
    expected, other = plain(webui, SEEDS[3])
    assert torch.equal(found, expected)
    assert torch.equal(torch.random.get_rng_state(), after)
    assert torch.equal(job.rng.next(), other.rng.next())
    assert (job.seeds, made, job.denoiser.step) == ([SEEDS[3]], 4, other.denoiser.step)
    assert [own for own, _ in itertools.groupby(curve.runs)] == [[SEEDS[1]], [SEEDS[3]]]
    (choice,) = sampling.choices
    assert choice.words() == (
        f"seed {SEEDS[3]} drawn, accepted by its draft, instead of 3; begun again: "
        f"with seed {SEEDS[1]} dog perhaps missing"
    )
    assert [(run.seed, run.chances["dog"]) for run in choice.runs] == [(SEEDS[1], BAD), (SEEDS[3], GOOD)]
    assert sampling.teller.told[0].chances["dog"] == GOOD  # what is told is told of the run that is delivered
    assert len(sampling.teller.readings[0]) == len(curve.runs) - 1
    assert state_of(webui) == (2, 3)
    assert (webui.shared.state.textinfo, job.extra_generation_params) == (
        None, {"Ours": "kept", "Schedule type": "Automatic"},
    )  # fmt: skip


@pytest.mark.parametrize(
    ("restarts", "chances", "runs", "number"),
    [
        (0, (BAD,), [0], 0),
        (1, (0.3, 0, 0.2), [0, 2, 0], 0),
        (1, (0.2, 0, 0.3), [0, 2], 2),
        (3, (0.2, 0.3, 0.1, 0.4), [0, 2, 1, 3], 3),
        (8, (0.3, 0.1, 0.2, 0.1), [0, 2, 1, 3, 0], 0),
    ],
    ids=["never", "the first was surer", "the second is surer", "three times", "until none is left"],
)
def test_the_surest_run_is_delivered_and_none_is_begun_more_often_than_allowed(
    webui, insist, restarts, chances, runs, number
):
    settings = replace(INSIST, restarts=restarts)
    found, job, _sampling, curve, _ = insist([[0.6], [0.3], [0.4], [0.1]], dict(zip(SEEDS, chances)), settings)
    assert [own for own, _ in itertools.groupby(curve.runs)] == [[SEEDS[k]] for k in runs]
    assert job.seeds == [SEEDS[number]]
    assert torch.equal(found, plain(webui, SEEDS[number])[0])


def test_what_guidance_did_is_told_of_the_run_that_is_delivered(webui, insist):
    guided = replace(INSIST, gradient="exact", steps=2)
    found, _job, sampling, _, _ = insist([[0.6], [0.7]], {SEEDS[0]: BAD}, guided)
    other, x = job_of(webui, [PROMPT], (SEEDS[1],), steps=STEPS)
    alone = webui.adapter.SamplingPass(other, replace(guided, look="tell"))
    alone.attach(x)
    assert torch.equal(found, other.sampler.sample(other, x))
    assert (sampling.stood_aside, alone.stood_aside) == ("", "")
    assert [record.step for record in sampling.traces[0].steps] == [record.step for record in alone.traces[0].steps]
    assert sampling.traces[0].passes == alone.traces[0].passes > 0


def test_a_run_that_is_begun_again_has_the_loss_scale_of_one_that_begins_with_that_seed(webui):
    """Or what ran over in the run before it would change the picture of the seed that is told."""
    job, x = job_of(webui, [PROMPT], (3,))
    sampling = webui.adapter.SamplingPass(job, INSIST)
    sampling.attach(x)
    sampling._learned.scale.lower(0)
    sampling._learned.thrift.one_at_a_time = True
    sampling.begin_again()
    assert sampling._learned.scale == LossScale()
    assert sampling._learned.thrift.one_at_a_time  # the machine has no more memory than before


def test_passes_of_a_run_that_was_given_up_are_counted(webui, insist):
    rows, without, guided = [], [], replace(INSIST, gradient="exact", steps=2)
    _, _, sampling, curve, made = insist([[0.6], [0.7]], {SEEDS[0]: BAD}, guided, prepare=counted(rows))
    insist([[0.6]], {}, guided, prepare=counted(without))  # one draft, and a run that lacks nothing
    assert len(curve.runs) > 1
    assert made == sampling.beside.drafts == 2
    assert sampling.beside.given_up == sum(rows) - sum(without) - 1 > 0
    assert sampling.beside.guided == sampling.traces[0].passes > 0


@pytest.mark.parametrize("picture", [{}, {"mask": MASK}], ids=["img2img", "inpainting"])
def test_in_img2img_too_a_run_is_begun_again_and_its_seed_draws_the_same_without_us(webui, insist, picture):
    torch.manual_seed(99)
    found, job, sampling, curve, made = insist([[0.3], [0.7], [0.2], [0.8]], {SEEDS[1]: BAD}, picture=picture)
    after = torch.random.get_rng_state()
    torch.manual_seed(99)
    expected, other = plain(webui, SEEDS[3], picture=picture)
    assert torch.equal(found, expected)
    assert torch.equal(torch.random.get_rng_state(), after)
    assert torch.equal(job.rng.next(), other.rng.next())
    assert (job.seeds, made, sampling.no_drafts) == ([SEEDS[3]], 4, "")
    assert [own for own, _ in itertools.groupby(curve.runs)] == [[SEEDS[1]], [SEEDS[3]]]
    assert sampling.choices[0].begun_again() == f"with seed {SEEDS[1]} dog perhaps missing"


def test_an_image_that_lacks_nothing_keeps_its_noise_while_another_of_the_batch_gets_its_next(webui, insist):
    others = seeds_to_draft(4, 4)
    found, job, sampling, curve, made = insist(
        [[0.6, 0.2], [0.1, 0.7], [0.8, 0.8]], {SEEDS[0]: BAD}, seeds=(3, 4)
    )  # fmt: skip
    assert made == 3
    assert [own for own, _ in itertools.groupby(curve.runs)] == [[3, others[1]], [SEEDS[2], others[1]]]
    assert job.seeds == job.all_seeds == [SEEDS[2], others[1]]
    assert torch.equal(found, plain(webui, SEEDS[2], others[1])[0])
    assert [choice.begun_again() for choice in sampling.choices] == ["with seed 3 dog perhaps missing", ""]


def test_of_variations_the_variations_seed_is_begun_again_with(webui, insist):
    variations = seeds_to_draft(50, 4)
    _found, job, sampling, _, _ = insist([[0.6], [0.7]], {3: BAD}, subseed_strength=0.5)
    assert (job.seeds, job.subseeds) == ([3], [variations[0]])  # both runs are of seed 3, and none was surer
    assert sampling.choices[0].words().startswith("the variation seed asked for, 50, accepted by its draft")


FAULTS = {
    "out of memory": (MemoryError("out of memory"), "out of memory"),
    "any other": (RuntimeError("broken"), "unexpected error"),
}


@pytest.mark.parametrize("kind", FAULTS)
def test_a_draft_that_fails_at_first_draws_the_seed_asked_for(webui, insist, kind):
    error, told = FAULTS[kind]
    found, job, sampling, _curve, _ = insist([[0.3], error], {3: BAD})
    assert torch.equal(found, plain(webui, 3)[0])
    assert (job.seeds, sampling.choices) == ([3], [None])
    assert told in sampling.no_drafts


@pytest.mark.parametrize("kind", FAULTS)
@pytest.mark.parametrize("where", ["draft", "attempt"])
def test_what_fails_later_delivers_the_surest_run_there_was(webui, insist, kind, where):
    error, told = FAULTS[kind]
    calls, made = [], []

    def failing(job):
        own = job.denoiser.forward

        def forward(*given, **more):
            calls.append(job.seeds[0])
            if job.seeds != [3]:
                held = Activations()
                made.append(weakref.ref(held))
                raise type(error)(*error.args)  # a new one: the other's frames stay with the test
            if kind == "out of memory":  # pytest keeps what others log, with its frames
                assert not any(one() for one in made)  # or there might not be the memory for the surest run
            return own(*given, **more)

        job.denoiser.forward = forward

    drafts = [[0.6], error] if where == "draft" else [[0.6], [0.7]]
    found, job, sampling, _, _ = insist(drafts, {3: BAD}, prepare=failing if where == "attempt" else None)
    assert torch.equal(found, plain(webui, 3)[0])
    assert job.seeds == [3]
    assert told in sampling.not_insisted
    assert any(told in comment for comment in job.comments)
    assert sampling.choices[0].drawn == 3
    assert webui.shared.state.textinfo is None
    assert where == "draft" or SEEDS[1] in calls


@pytest.mark.parametrize("how", ["interrupted", "skipped"])
def test_stopped_within_the_drafts_of_another_attempt_the_first_one_s_latents_are_delivered(webui, insist, how):
    def stopping(job):
        own = job.denoiser.forward

        def forward(x, *given, **more):
            made = own(x, *given, **more)
            job.sampler.last_latent = made
            if len(drafted) == 2:
                setattr(webui.shared.state, how, True)
            return made

        drafted = job.drafted = []
        job.denoiser.forward = forward

    class Counting(Sampler):
        def sample(self, p, x, *args):
            self.job.drafted.append(len(self.noises)) if len(self.noises) in (0, 2) else None
            return super().sample(p, x, *args)

    found, job, _sampling, _curve, _ = insist([[0.6], [0.2], [0.7]], {3: BAD}, prepare=stopping, sampler=Counting)
    assert job.seeds == [3]
    assert len(job.sampler.noises) == 3  # drafts, the run, drafts
    assert not torch.equal(found, plain(webui, 3)[0])
    assert found.shape == (1, 4, 8, 8)


def test_a_run_that_a_refiner_has_taken_over_is_not_begun_again(webui, insist):
    model = webui.shared.sd_model

    def switching(job):
        own = job.denoiser.forward

        def forward(*given, **more):
            if len(job.sampler.noises) == 2:
                model.sd_checkpoint_info = "another"
            return own(*given, **more)

        job.denoiser.forward = forward

    model.sd_checkpoint_info = "first"
    _found, job, sampling, _curve, _ = insist([[0.6], [0.7]], {3: BAD}, prepare=switching)
    assert job.seeds == [3]
    assert "refiner" in sampling.not_insisted


@pytest.mark.parametrize("levels", [None, (Level(1.6, 2.0, 5.0),)], ids=["no curve", "none of drafts"])
def test_where_nobody_has_learned_what_drafts_tell_the_best_of_all_is_drawn(webui, monkeypatch, levels):
    def drawn(look):
        job, x = job_of(webui, [PROMPT], (3,), steps=STEPS)
        sampling = webui.adapter.SamplingPass(job, replace(INSIST, look=look, restarts=0))
        sampling.attach(x)
        return job.sampler.sample(job, x), job.seeds, sampling

    curve = levels and Curve(levels)
    monkeypatch.setattr(webui.adapter.SamplingPass, "curve", lambda self: curve)
    (found, seeds, sampling), (expected, chosen, other) = drawn("insist"), drawn("choose")
    assert torch.equal(found, expected)
    assert seeds == chosen
    assert len(sampling.choices[0].scores) == 4
    assert "nobody has learned" in sampling.not_insisted
    assert other.not_insisted == ""
