"""``look: choose`` around the stand-ins of A1111 and Forge: which noise is drawn, and what the host is left with."""

from __future__ import annotations

import functools
import importlib
import itertools
import sys
import weakref
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from lib_decouple.core.presence import presence
from lib_decouple.hosts.base import Looking
from lib_decouple.hosts.seeds import STRIDE, ExtraPasses, seeds_to_draft
from lib_decouple.profiles import EMBEDDED
from lib_decouple.settings import Settings
from lib_decouple.webui.compare import begin

from . import forge_host, host

openaimodel = pytest.importorskip(
    "ldm.modules.diffusionmodules.openaimodel", reason="ldm's UNet is not installed (stable-diffusion-sdkit)"
)
CHOOSE = Settings(enabled=True, look="choose", entities=("cat", "dog"), gradient="none")
PROMPT = "a cat and a dog"
SHAPE = {
    "image_size": 8, "in_channels": 4, "out_channels": 4, "model_channels": 32, "num_res_blocks": 1,
    "attention_resolutions": [1, 2], "channel_mult": [1, 2, 2], "num_heads": 4, "use_spatial_transformer": True,
    "context_dim": 16, "legacy": False, "use_checkpoint": False,
}  # fmt: skip


@pytest.fixture(scope="module")
def a1111_unet():
    torch.manual_seed(0)
    made = openaimodel.UNetModel(**SHAPE).eval()
    for parameter in made.parameters():  # ldm starts its output layers at zero
        torch.nn.init.normal_(parameter, std=0.2)
    return made


@pytest.fixture(scope="module")
def forge_unet():
    return forge_host.make_unet(openaimodel.UNetModel, **SHAPE)


@pytest.fixture(params=["a1111", "forge", "forge, DDIM"])
def webui(request, monkeypatch):
    """The adapter, the stand-in's ``shared`` and how a job of it is made."""
    name = request.param.partition(",")[0]
    stand_in = {"a1111": host, "forge": forge_host}[name]
    shared = stand_in.install(monkeypatch, request.getfixturevalue(f"{name}_unet"))
    state = shared.state
    state.job_count, state.job_no, state.textinfo, state.told = 1, 0, None, []

    def nextjob():
        state.job_no += 1
        state.told.append(state.textinfo)

    state.nextjob = nextjob
    shared.opts.eta_noise_seed_delta = 0
    func = forge_host.ddim if "DDIM" in request.param else host.euler
    return SimpleNamespace(
        adapter=importlib.import_module(f"lib_decouple.hosts.{name}"), shared=shared,
        job=lambda prompts, steps=8, **given: stand_in.Job(shared, prompts, steps=steps, func=func, **given),
    )  # fmt: skip


class Sampler:
    """The host's, which makes latents of the noise, and begins anew whenever it samples."""

    def __init__(self, job):
        self.job, self.func, self.config, self.noises = job, job.sampler.func, None, []
        self.last_latent = None

    def sample(self, p, x, *args):
        return self._sampled(p, x, x * 14)

    def sample_img2img(self, p, x, noise, *args, image_conditioning=None):
        self.job.denoiser.init_latent = x
        made = x + noise * 14
        made += noise * p.extra_noise
        return self._sampled(p, noise, made)

    def _sampled(self, p, noise, x):
        self.noises.append(noise)
        self.last_latent = x
        self.job.denoiser.step, self.job.denoiser.total_steps = 0, self.job.steps
        p.extra_generation_params["Schedule type"] = "Automatic"
        return type(self.job).sample(self.job, x)


PICTURE = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(6))
"""What the host has encoded of the picture that img2img begins with."""
MASK = (torch.arange(8) < 4).float().expand(4, 8, 8)


def begun_with(job, x, picture=PICTURE, mask=None, fill=1, noise_multiplier=1.0, extra_noise=0.0):
    """Make the job one of img2img; gives the noise that the host begins with."""
    job.init_images, job.init_latent, job.mask, job.inpainting_fill = ["one"], picture.expand_as(x), mask, fill
    job.initial_noise_multiplier, job.extra_noise = noise_multiplier, extra_noise
    if mask is not None:
        job.denoiser.mask, job.denoiser.nmask = mask, 1 - mask
    return x * noise_multiplier if noise_multiplier != 1 else x


def sampled(job, x):
    """As ``p.sample`` of txt2img or img2img goes on."""
    if hasattr(job, "init_images"):
        return job.sampler.sample_img2img(job, job.init_latent, x, "conds", "unconds", image_conditioning=None)
    return job.sampler.sample(job, x)


def job_of(webui, prompts, seeds, subseed_strength=0.0, picture=None, **given):
    """As the host has it when it asks the scripts before sampling, with the noise; of img2img where ``picture`` says
    how it begins."""
    job = webui.job(prompts, **given)
    job.sampler = Sampler(job)
    job.n_iter, job.batch_size, job.scripts, job.script_args = 1, len(prompts), None, ()
    job.refiner_checkpoint_info, job.refiner_switch_at = None, None
    job.extra_generation_params = {"Ours": "kept"}
    job.subseed_strength, job.seeds, job.all_seeds = subseed_strength, list(seeds), [*seeds]
    job.subseeds, job.all_subseeds = [50 + k for k in range(len(seeds))], [50 + k for k in range(len(seeds))]
    job.rng = sys.modules["modules.rng"].ImageRNG((4, 8, 8), job.seeds, job.subseeds, subseed_strength)
    x = job.rng.next()
    return job, x if picture is None else begun_with(job, x, **picture)


def drawn(webui, prompts=(PROMPT,), seeds=(3,), settings=CHOOSE, prepare=None, **given):
    """A job's latents, the job and the pass; with no ``settings`` as the host draws by itself."""
    job, x = job_of(webui, list(prompts), seeds, **given)
    sampling = None
    if settings:
        sampling = webui.adapter.SamplingPass(job, settings)
        sampling.attach(x)
    if prepare:
        prepare(job)
    return sampled(job, x), job, sampling


def counted(rows):
    """Has a job write down, in ``rows``, how many latents each call of its denoiser gets."""

    def prepare(job):
        forward = job.denoiser.forward

        def counting(x, *args, **kwargs):
            rows.append(len(x))
            return forward(x, *args, **kwargs)

        job.denoiser.forward = counting

    return prepare


def asked_that_is_not_best(webui, count=1, start=3, **given):
    """Seeds of whose drafts another is the best."""
    found = []
    for seed in range(start, start + 40):
        _, job, _ = drawn(webui, seeds=(seed,), **given)
        found += [seed] if job.seeds != [seed] else []
        if len(found) == count:
            return found
    raise AssertionError("no seed found of whose drafts another is the best")


def test_seeds_to_draft_never_meet_within_a_job():
    every = [seed for asked in range(5, 5 + 4000) for seed in seeds_to_draft(asked, 16)]
    assert len(set(every)) == len(every)
    assert seeds_to_draft(5, 3) == [5, 5 + STRIDE, 5 + 2 * STRIDE]
    assert all(0 <= seed < 2**32 for seed in seeds_to_draft(2**32 - 1, 16))
    assert seeds_to_draft(2**40, 2) == [2**40, 2**40 + STRIDE]


def test_the_chosen_seed_draws_the_same_without_us(webui):
    (asked,) = asked_that_is_not_best(webui)
    state = webui.shared.state
    state.job_count, state.job_no = 1, 0
    torch.manual_seed(99)
    found, job, sampling = drawn(webui, seeds=(asked,))
    after = torch.random.get_rng_state()
    torch.manual_seed(99)
    plain, other, _ = drawn(webui, seeds=job.seeds, settings=None)
    assert torch.equal(found, plain)
    assert torch.equal(torch.random.get_rng_state(), after)
    assert torch.equal(job.rng.next(), other.rng.next())  # ancestral noise goes on alike
    (choice,) = sampling.choices
    assert (choice.asked, [choice.drawn], job.all_seeds) == (asked, job.seeds, job.seeds)
    assert list(choice.scores) == seeds_to_draft(asked, 4)
    weakest = {seed: min(own.values()) for seed, own in choice.scores.items()}
    assert max(weakest, key=weakest.get) == choice.drawn
    assert (sampling.no_drafts, sampling.stood_aside, job.comments) == ("", "", [])
    assert job.extra_generation_params == {"Ours": "kept", "Schedule type": "Automatic"}
    assert (job.denoiser.step, "sample" in vars(job.sampler), state.textinfo) == (8, False, None)
    assert (state.job_count, state.job_no) == (2, 1)


def test_a_draft_s_score_is_the_peak_in_the_run_s_own_pass_at_that_level(webui, monkeypatch):
    """From the first noise on the same coarse way, with the maps read by the pass that tells."""
    drafting, seen = sys.modules["lib_decouple.hosts.drafting"], []

    def spying(denoise, x, sigmas, model, reader, rows, *moving):
        made = drafted(denoise, x, sigmas, model, reader, rows, *moving)
        for sigma, after in itertools.pairwise(sigmas):
            x0 = denoise(x, sigma)
            x = x0 + (x - x0) * (after / sigma)
        with reader.reading() as capture:
            denoise(x, sigmas[-1])
        seen.append((sigmas, capture, reader))
        return made

    drafted = drafting.draft
    monkeypatch.setattr(drafting, "draft", spying)
    reader_kind = drafting.MapReader
    monkeypatch.setattr(drafting, "MapReader", lambda layers, images: reader_kind(layers, images, stop=False))
    _, _, sampling = drawn(webui)
    ((sigmas, capture, reader),) = seen
    assert sigmas == pytest.approx([sigmas[0], 7.6, 3.6, 1.6])
    for row, scores in enumerate(sampling.choices[0].scores.values()):
        own = capture.maps  # without guidance every row is conditional
        (maps,) = reader_kind(reader.layers, reader.images).maps(
            type(capture)(capture.tokens, {name: found[row : row + 1] for name, found in own.items()}), (8, 8), [row]
        )
        assert list(scores.values()) == pytest.approx(presence(maps[None])[0].tolist(), rel=1e-4)


@pytest.mark.parametrize(
    ("prompts", "given"),
    [
        ([PROMPT] * 3, {}),
        (["a dog AND a cat", PROMPT], {}),
        (["a [bird:cat:5] and a dog", PROMPT], {}),
    ],
    ids=["batch", "AND", "prompt editing"],
)
def test_each_image_of_a_batch_has_its_own_seed(webui, prompts, given):
    if "AND" in prompts[0] and "forge" in webui.adapter.__name__:
        prompts = [prompts[0]] * 2  # Forge leaves out what another prompt has not
    seeds = [*range(20, 20 + len(prompts))]
    found, job, sampling = drawn(webui, prompts, seeds, **given)
    plain, _, _ = drawn(webui, prompts, job.seeds, settings=None)
    assert torch.equal(found, plain)
    for seed, choice, own in zip(seeds, sampling.choices, job.seeds):
        assert choice.asked == seed
        assert list(choice.scores) == seeds_to_draft(seed, 4)
        assert own == choice.drawn
    assert len(set(job.seeds)) == len(seeds)
    _, _, of_one = drawn(webui, prompts[:1], seeds[:1])
    if prompts[0] == prompts[-1] == PROMPT:
        assert of_one.choices[0].scores[20] == pytest.approx(sampling.choices[0].scores[20], rel=1e-3)


def test_the_seeds_of_other_batches_stay_as_they_are(webui):
    job, x = job_of(webui, [PROMPT] * 2, (31, 32))
    job.iteration, job.n_iter, job.all_seeds = 1, 3, [29, 30, 31, 32, 33, 34]
    asked = job.all_seeds
    sampling = webui.adapter.SamplingPass(job, CHOOSE)
    sampling.attach(x)
    job.sampler.sample(job, x)
    assert job.all_seeds == [29, 30, *job.seeds, 33, 34]
    assert asked == [29, 30, 31, 32, 33, 34]  # which may be the caller's own list


def test_beside_a_comparison_the_host_s_progress_ends_with_the_job(webui):
    state = webui.shared.state
    job, x = job_of(webui, [PROMPT], (3,))
    job.n_iter, job.all_prompts, job.all_seeds, job.all_subseeds = 2, [PROMPT] * 2, [3, 4], [50, 51]
    state.job_count, state.time_start = 2, 1.0
    comparison = begin(job, state)
    assert job.all_seeds == [3, 3, 4, 4]
    for batch in range(job.n_iter):
        job.iteration = batch
        if not comparison.plain(batch):
            job.seeds = [job.all_seeds[batch]]
            job.rng = sys.modules["modules.rng"].ImageRNG((4, 8, 8), job.seeds, job.subseeds, 0.0)
            sampling = webui.adapter.SamplingPass(job, CHOOSE)
            sampling.batches = comparison.decoupled_from(batch)
            x = job.rng.next()
            sampling.attach(x)
        job.sampler.sample(job, x)
        state.nextjob()
    assert (state.job_no, state.job_count) == (6, 6)


def test_of_variations_the_variation_s_seed_is_chosen(webui):
    found, job, sampling = drawn(webui, seeds=(3,), subseed_strength=0.5, settings=CHOOSE)
    (choice,) = sampling.choices
    assert choice.variation
    assert (job.seeds, job.all_seeds) == ([3], [3])
    assert job.subseeds == job.all_subseeds == [choice.drawn]
    assert list(choice.scores) == seeds_to_draft(50, 4)
    other, _ = job_of(webui, [PROMPT], (3,), subseed_strength=0.5)
    other.rng = sys.modules["modules.rng"].ImageRNG((4, 8, 8), [3], [choice.drawn], 0.5)
    assert torch.equal(other.sampler.sample(other, other.rng.next()), found)


@pytest.mark.parametrize("images", [1, 2])
def test_passes_of_drafts_are_counted(webui, images):
    with_drafts, plain = [], []
    _, _, sampling = drawn(webui, [PROMPT] * images, range(3, 3 + images), prepare=counted(with_drafts))
    drawn(webui, [PROMPT] * images, range(3, 3 + images), settings=None, prepare=counted(plain))
    assert sampling.beside == ExtraPasses(drafts=sum(with_drafts) - sum(plain))
    assert sampling.beside.drafts >= 4 * images


@pytest.mark.parametrize(("most", "groups"), [(4, [4]), (3, [4, 2, 2]), (1, [4, 2, 1, 1, 1, 1])])
def test_where_memory_ends_fewer_are_drafted_at_once(webui, monkeypatch, most, groups):
    expected, _, before = drawn(webui)
    drafting, seen = sys.modules["lib_decouple.hosts.drafting"], []

    def tight(denoise, x, *given, whole=drafting.draft):
        seen.append(len(x))
        if len(x) > most:
            raise MemoryError("out of memory")
        return whole(denoise, x, *given)

    monkeypatch.setattr(drafting, "draft", tight)
    found, _, sampling = drawn(webui)
    assert seen == groups
    assert sampling.choices[0].scores == {
        seed: pytest.approx(own, rel=1e-3) for seed, own in before.choices[0].scores.items()
    }
    if sampling.choices[0].drawn == before.choices[0].drawn:
        assert torch.equal(found, expected)


GUIDED = replace(CHOOSE, gradient="exact", loss="com", size=0.4, start=0, steps=8)


def test_where_the_run_is_guided_so_are_its_drafts_and_the_chosen_seed_draws_as_ever(webui):
    """With fewer passes, and as a run of the chosen seed alone is guided."""
    rows = []
    found, job, sampling = drawn(webui, seeds=(5,), settings=GUIDED)
    alone, other, _ = drawn(webui, seeds=job.seeds, settings=replace(GUIDED, look="tell"), prepare=counted(rows))
    assert torch.equal(found, alone)
    (choice,) = sampling.choices
    assert list(choice.scores) == seeds_to_draft(5, 4)
    weakest = {seed: min(own.values()) for seed, own in choice.scores.items()}
    assert max(weakest, key=weakest.get) == choice.drawn
    _, _, unguided = drawn(webui, seeds=(5,))
    assert choice.scores != unguided.choices[0].scores
    # Each of four candidates has passes at three noise levels, and is moved before two of them.
    assert (choice.moves, sampling.beside.drafts) == (8, 4 * (3 + 2))
    assert (sampling.no_drafts, sampling.stood_aside, job.comments) == ("", "", [])
    assert torch.equal(job.rng.next(), other.rng.next())


@pytest.mark.parametrize("webui", ["forge, DDIM"], indirect=True)
def test_drafts_of_unipc_which_evaluates_every_timestep_are_guided_too(webui):
    @functools.wraps(forge_host.ddim)
    def unipc(*given, **more):
        return forge_host.ddim(*given, **more)

    unipc.__name__ = "unipc"
    job, x = job_of(webui, [PROMPT], (5,))
    job.sampler.func = unipc
    sampling = webui.adapter.SamplingPass(job, GUIDED)
    sampling.attach(x)
    sampled(job, x)
    assert (sampling.choices[0].moves, sampling.no_drafts) == (8, "")


def test_a_guided_draft_is_one_seed_s_own_whatever_else_is_drafted(webui):
    """Alone, in a batch, and as another seed's candidate it scores the same."""
    seed = 5 + STRIDE
    _, _, batch = drawn(webui, [PROMPT] * 2, (5, 900), settings=GUIDED)
    _, _, alone = drawn(webui, seeds=(seed,), settings=GUIDED)
    assert batch.choices[0].scores[seed] == pytest.approx(alone.choices[0].scores[seed], rel=1e-3)


@pytest.mark.parametrize("images", [1, 2])
@pytest.mark.parametrize("kind", ["guidance", "the end of memory"])
def test_where_guidance_fails_in_a_draft_all_are_made_without_it(webui, monkeypatch, kind, images):
    error = MemoryError("out of memory") if kind == "the end of memory" else ValueError("broken")
    prompts, seeds = [PROMPT] * images, (5, 900)[:images]

    def fail(*given):
        raise error

    monkeypatch.setattr(webui.adapter.SamplingPass, "moved_draft", fail)
    found, job, sampling = drawn(webui, prompts, seeds, settings=GUIDED)
    _, _, unguided = drawn(webui, prompts, seeds)
    for choice, expected in zip(sampling.choices, unguided.choices, strict=True):
        assert choice.moves == 0
        for seed, own in expected.scores.items():
            assert choice.scores[seed] == pytest.approx(own, rel=1e-3)
    told = "out of memory" if kind == "the end of memory" else "unexpected error"
    assert [told in comment for comment in job.comments if "drafted without guidance" in comment] == [True]
    assert sampling.no_drafts == ""
    alone, _, _ = drawn(webui, prompts, job.seeds, settings=replace(GUIDED, look="tell"))
    assert torch.equal(found, alone)


class Activations:
    """What a pass that fails has made until then."""


@pytest.mark.parametrize("where", ["a draft", "guidance in a draft"])
def test_what_a_failed_draft_has_made_is_gone_before_anything_else_is_drawn(webui, monkeypatch, where):
    """Or there might not be the memory for it."""
    made, seen = [], []

    def fail(*given):
        held = Activations()
        made.append(weakref.ref(held))
        raise MemoryError("out of memory")

    def watched(job):
        forward = job.denoiser.forward

        def watching(*args, **kwargs):
            seen.extend(one() is None for one in made)
            return forward(*args, **kwargs)

        job.denoiser.forward = watching

    if where == "a draft":
        monkeypatch.setattr(sys.modules["lib_decouple.hosts.drafting"], "draft", fail)
    else:
        monkeypatch.setattr(webui.adapter.SamplingPass, "moved_draft", fail)
    drawn(webui, seeds=(5,), settings=GUIDED, prepare=watched)
    assert made
    assert seen
    assert all(seen)


def test_where_guidance_begins_behind_the_drafts_they_are_as_without_it(webui):
    late = replace(GUIDED, start=14, steps=16)
    _, _, sampling = drawn(webui, seeds=(5,), settings=late, steps=16)
    _, _, unguided = drawn(webui, seeds=(5,), steps=16)
    assert sampling.choices[0].moves == 0
    assert sampling.choices[0].scores == unguided.choices[0].scores
    assert sampling.traces[0].steps


def test_an_image_that_is_not_guided_is_drafted_without_though_the_others_are_guided(webui):
    """A cat alone has nothing to be kept apart from; an unmoved draft tells lower down."""
    _, _, both = drawn(webui, ["a cat", PROMPT], (5, 900), settings=GUIDED)
    _, _, cat = drawn(webui, ["a cat"], (5,))
    _, _, pair = drawn(webui, seeds=(900,), settings=GUIDED)
    assert [one.moves for one in both.choices] == [0, 8]
    for found, expected in ((both.choices[0], cat.choices[0]), (both.choices[1], pair.choices[0])):
        assert list(found.scores) == list(expected.scores)
        for seed, own in expected.scores.items():
            assert found.scores[seed] == pytest.approx(own, rel=1e-3)


@pytest.mark.parametrize(("known", "groups"), [(None, [1, 1, 1, 1]), (2**40, [4])])
def test_of_many_drafts_the_gradient_is_had_at_once_where_the_memory_is_known(webui, monkeypatch, known, groups):
    drafting, seen = sys.modules["lib_decouple.hosts.drafting"], []

    def spying(denoise, x, *given, whole=drafting.draft):
        seen.append(len(x))
        return whole(denoise, x, *given)

    monkeypatch.setattr(drafting, "draft", spying)
    monkeypatch.setattr(drafting, "free", lambda device: known)
    drawn(webui, seeds=(5,), settings=GUIDED)
    assert seen == groups


@pytest.mark.parametrize(
    ("prompt", "told"),
    [
        ("a [fog:cat:2] and rain", ""),
        ("a [cat:fog:2] and rain", "the prompt is edited"),
        ("a [fog:cat:18] and rain", "the prompt is edited"),
        ("a fog and rain", "no entity was found"),
    ],
)
def test_what_there_is_to_look_for_is_asked_where_drafts_are_looked_at(webui, prompt, told):
    settings = replace(CHOOSE, entities=("cat",), skip_missing=True)
    _, _, sampling = drawn(webui, [prompt], settings=settings, steps=20)
    assert told in sampling.no_drafts
    assert (sampling.choices[0] is None) == bool(sampling.no_drafts) == bool(told)
    assert (sampling.beside.drafts > 0) == (not told)


REFUSED = {
    "out of memory": (MemoryError("out of memory"), "out of memory"),
    "any other": (RuntimeError("broken"), "unexpected error"),
}


@pytest.mark.parametrize("kind", REFUSED)
@pytest.mark.parametrize("where", ["draft", "LatentScale", "passes", "Noises"])
def test_a_failure_draws_the_seed_that_was_asked_for_and_says_so(webui, monkeypatch, kind, where):
    error, told = REFUSED[kind]
    torch.manual_seed(99)
    plain, other, _ = drawn(webui, settings=None)
    after = torch.random.get_rng_state()

    def fail(*given):
        raise error

    monkeypatch.setattr(sys.modules["lib_decouple.hosts.drafting"], where, fail)
    torch.manual_seed(99)
    found, job, sampling = drawn(webui)
    assert torch.equal(found, plain)
    assert torch.equal(torch.random.get_rng_state(), after)
    assert (job.seeds, job.all_seeds, sampling.choices) == ([3], [3], [None])
    assert told in sampling.no_drafts
    assert any(told in comment for comment in job.comments)
    assert torch.equal(job.rng.next(), other.rng.next())


def test_what_cannot_be_chosen_is_said(webui):
    def changed(job):
        job.rng.seeds = [4]  # as where another script has made the noise

    for prompt, prepare, told in (
        ("a bird", None, "no entity was found"),
        (PROMPT, changed, "another extension has made the first noise"),
    ):
        settings = CHOOSE if prepare else Settings(enabled=True, look="choose", entities=("whale",), skip_missing=True)
        if prepare:
            job, x = job_of(webui, [prompt], (3,))
            sampling = webui.adapter.SamplingPass(job, settings)
            sampling.attach(x)
            found = job.sampler.sample(job, x + 1)
            reference, noise = job_of(webui, [prompt], (3,))
            plain = reference.sampler.sample(reference, noise + 1)
        else:
            found, job, sampling = drawn(webui, [prompt], settings=settings)
            plain, _, _ = drawn(webui, [prompt], settings=None)
        assert torch.equal(found, plain)
        assert told in sampling.no_drafts
        assert job.seeds == [3]


PICTURES = {
    "img2img": {}, "mask": {"mask": MASK}, "noise multiplier": {"noise_multiplier": 1.3},
    "extra noise": {"extra_noise": 0.7}, "nothing under the mask": {"mask": MASK, "picture": PICTURE * 0, "fill": 3},
}  # fmt: skip


@pytest.mark.parametrize("kind", PICTURES)
def test_in_img2img_the_chosen_seed_draws_the_same_without_us(webui, kind):
    picture = PICTURES[kind]
    (asked,) = asked_that_is_not_best(webui, picture=picture)
    torch.manual_seed(99)
    found, job, sampling = drawn(webui, seeds=(asked,), picture=picture)
    after = torch.random.get_rng_state()
    torch.manual_seed(99)
    plain, other, _ = drawn(webui, seeds=job.seeds, settings=None, picture=picture)
    assert torch.equal(found, plain)
    assert torch.equal(torch.random.get_rng_state(), after)
    assert torch.equal(job.rng.next(), other.rng.next())
    (choice,) = sampling.choices
    assert (choice.asked, [choice.drawn], job.all_seeds) == (asked, job.seeds, job.seeds)
    weakest = {seed: min(own.values()) for seed, own in choice.scores.items()}
    assert list(weakest) == seeds_to_draft(asked, 4)
    assert max(weakest, key=weakest.get) == choice.drawn
    assert (sampling.no_drafts, sampling.stood_aside, job.comments) == ("", "", [])
    assert not {"sample", "sample_img2img"} & set(vars(job.sampler))
    assert torch.equal(job.denoiser.init_latent, job.init_latent)


@pytest.mark.parametrize("kind", PICTURES)
def test_a_draft_of_img2img_begins_as_the_host_begins_with_that_seed(webui, monkeypatch, kind):
    drafting, seen = sys.modules["lib_decouple.hosts.drafting"], []
    monkeypatch.setattr(drafting, "draft", lambda denoise, x, *given: seen.append(x.clone()) or [None] * len(x))
    picture = PICTURES[kind]
    drawn(webui, picture=picture)
    (latents,) = seen
    for seed, own in zip(seeds_to_draft(3, 4), latents):
        job, noise = job_of(webui, [PROMPT], (seed,), picture=picture)
        first = job.init_latent + noise * (14 + job.extra_noise)
        # DDIM's stand-in divides by 14, and drafts go on at what that timestep's noise level makes of it
        assert torch.nn.functional.cosine_similarity(own.flatten(), first.flatten(), dim=0) > 1 - 1e-6
    assert len({float(own.norm()) for own in latents}) == 4


def test_each_image_of_a_batch_of_img2img_keeps_its_own_picture(webui):
    two, prompts = torch.cat([PICTURE, -PICTURE]), [PROMPT] * 2
    picture = {"picture": two, "mask": MASK}
    found, job, sampling = drawn(webui, prompts, (20, 21), picture=picture)
    plain, _, _ = drawn(webui, prompts, job.seeds, settings=None, picture=picture)
    assert torch.equal(found, plain)
    for k, (choice, own) in enumerate(zip(sampling.choices, job.seeds)):
        assert own == choice.drawn
        _, _, alone = drawn(webui, [PROMPT], (20 + k,), picture={"picture": two[k : k + 1], "mask": MASK})
        if webui.adapter.__name__.endswith("a1111"):  # Forge noises what the mask keeps by numbers of the whole batch
            assert alone.choices[0].scores[20 + k] == pytest.approx(choice.scores[20 + k], rel=1e-3)
        assert list(alone.choices[0].scores) == seeds_to_draft(20 + k, 4)


NO_OTHER_SEED = {
    "latent noise under a mask": ({"mask": MASK, "fill": 2}, {}, "“Masked content” is latent noise"),
    "a script of tiles": ({}, {"script": "SD upscale"}, "the script “SD upscale”"),
}


@pytest.mark.parametrize("case", NO_OTHER_SEED)
def test_where_another_seed_would_not_draw_the_picture_again_none_is_drafted(webui, case):
    picture, given, told = NO_OTHER_SEED[case]
    for script in (given.get("script"), "Loopback"):
        job, x = job_of(webui, [PROMPT], (3,), picture=picture)
        scripts = [SimpleNamespace(title=lambda own=script: own)]
        job.scripts, job.script_args = SimpleNamespace(selectable_scripts=scripts, alwayson_scripts=[]), [1]
        sampling = webui.adapter.SamplingPass(job, CHOOSE)
        sampling.attach(x)
        refused = script != "Loopback" or "mask" in picture
        if script is None:
            job.script_args = [0]
        found = sampled(job, x)
        assert (told in sampling.no_drafts, len(job.sampler.noises) == 1) == (refused, refused)
        if refused:
            plain, _, _ = drawn(webui, settings=None, picture=picture)
            assert torch.equal(found, plain)
            assert any(told in comment for comment in job.comments)
    _, job, sampling = drawn(webui, picture={"mask": MASK, "fill": 2}, subseed_strength=0.5)
    assert sampling.choices[0].variation  # whose seeds make no latent noise
    assert sampling.no_drafts == ""


def test_latents_that_are_not_of_picture_and_noise_alone_are_not_drafted(webui):
    class Changed(Sampler):
        def sample_img2img(self, p, x, noise, *args, **given):
            self.job.denoiser.init_latent = x
            return self._sampled(p, noise, x + noise * 14 + torch.ones_like(x))

    def drawn_so(settings):
        job, x = job_of(webui, [PROMPT], (3,), picture={})
        job.sampler = Changed(job)
        sampling = webui.adapter.SamplingPass(job, settings or CHOOSE)
        if settings:
            sampling.attach(x)
        return sampled(job, x), job, sampling

    found, job, sampling = drawn_so(CHOOSE)
    assert torch.equal(found, drawn_so(None)[0])
    assert job.seeds == [3]
    assert "changed the latents that sampling begins with" in sampling.no_drafts


def test_what_another_extension_has_put_in_the_function_s_place_stays_there(webui):
    job, x = job_of(webui, [PROMPT], (3,), picture={})
    calls, own = [], job.sampler.sample_img2img
    theirs = job.sampler.sample_img2img = lambda *given, **more: calls.append(given) or own(*given, **more)
    sampling = webui.adapter.SamplingPass(job, CHOOSE)
    sampling.attach(x)
    sampled(job, x)
    assert vars(job.sampler)["sample_img2img"] is theirs
    assert (len(calls), sampling.no_drafts) == (2, "")
    assert sampling.choices[0]


def drafted_alone(webui, prompt=PROMPT, **given):
    job, x = job_of(webui, [prompt], (3,), **given)
    job.enable_hr = True
    sampling = webui.adapter.SamplingPass(job, CHOOSE, Looking(draws=False))
    sampling.attach(x)
    return sampled(job, x), job, sampling


@pytest.mark.parametrize("picture", [None, {}], ids=["txt2img", "img2img"])
def test_of_drafts_alone_nothing_is_drawn_and_the_job_keeps_its_seeds(webui, picture):
    _, _, chosen = drawn(webui, picture=picture)
    seen = []
    unet = webui.shared.sd_model
    unet = (
        unet.forge_objects.unet.model.diffusion_model if hasattr(unet, "forge_objects") else unet.model.diffusion_model
    )
    hook = unet.register_forward_pre_hook(lambda module, args: seen.append(len(args[0])))
    try:
        found, job, sampling = drafted_alone(webui, picture=picture)
    finally:
        hook.remove()
    assert seen == [4] * 4  # four drafts of four steps, and no run
    assert found.shape == (1, 4, 8, 8)
    (choice,) = sampling.choices
    assert (choice.asked, choice.drawn, choice.scores) == (3, None, chosen.choices[0].scores)
    assert choice.words() == f"4 seeds drafted, {chosen.choices[0].drawn} is the best by attention; nothing was drawn"
    assert (job.seeds, job.all_seeds, job.enable_hr, sampling.drew) == ([3], [3], False, False)
    assert (webui.shared.state.skipped, sampling.no_drafts, job.comments) == (True, "", [])
    another = webui.adapter.SamplingPass(job, CHOOSE)  # of the next batch, which img2img draws by the same sampler
    another.attach(None)
    assert another.replaces is None


@pytest.mark.parametrize("case", ["nothing to look for", "latent noise", "out of memory"])
def test_where_none_can_be_drafted_nothing_is_drawn_either_and_why_is_told(webui, monkeypatch, case):
    def fail(*given):
        raise MemoryError("out of memory")

    if case == "out of memory":
        monkeypatch.setattr(sys.modules["lib_decouple.hosts.drafting"], "draft", fail)
    if case == "nothing to look for":
        monkeypatch.setattr(sys.modules[__name__], "CHOOSE", Settings(enabled=True, look="choose", gradient="none"))
    picture = {"mask": MASK, "fill": 2} if case == "latent noise" else None
    _, job, sampling = drafted_alone(webui, "fog" if case == "nothing to look for" else PROMPT, picture=picture)
    told = {"nothing to look for": "no entity was found"}.get(case, case)
    assert told in sampling.no_drafts
    assert (sampling.drew, sampling.choices, webui.shared.state.skipped) == (False, [None], True)
    assert job.comments == [f"Attention Decoupling drafted nothing, and nothing is drawn: {sampling.no_drafts}"]


def test_the_second_pass_of_hires_fix_is_left_alone(webui):
    job, x = job_of(webui, [PROMPT], (3,))
    job.is_hr_pass, job.hr_prompts = True, [PROMPT]
    sampling = webui.adapter.SamplingPass(job, CHOOSE)
    sampling.attach(x)
    assert "sample" not in vars(job.sampler)


@pytest.mark.parametrize("how", ["interrupted", "skipped"])
def test_interrupted_within_the_drafts_the_host_ends_as_it_ever_does(webui, how, monkeypatch):
    class InterruptedException(BaseException):
        pass

    class Stopping(Sampler):
        def sample(self, p, x, *args):
            try:
                return super().sample(p, x, *args)
            except InterruptedException:
                return x

    calls = []

    def before(job):
        forward = job.denoiser.forward

        def counting(x, *given, **more):
            calls.append(len(x))
            if len(calls) > 2:
                setattr(webui.shared.state, how, True)
            if getattr(webui.shared.state, how):
                raise InterruptedException
            return forward(x, *given, **more)

        job.denoiser.forward = counting

    job, x = job_of(webui, [PROMPT], (3,))
    job.sampler = Stopping(job)
    sampling = webui.adapter.SamplingPass(job, CHOOSE)
    sampling.attach(x)
    before(job)
    found = job.sampler.sample(job, x)
    assert found.shape == x.shape
    assert (sampling.choices, sampling.no_drafts, job.seeds) == ([None], "", [3])
    assert calls == [4, 4, 4, 1]
    assert (job.refiner_checkpoint_info, webui.shared.state.textinfo) == (None, None)


def test_other_attention_is_drafted_as_many_at_once_as_the_host_draws(webui):
    unet = webui.adapter.shared.sd_model
    unet = (
        unet.forge_objects.unet.model.diffusion_model if hasattr(unet, "forge_objects") else unet.model.diffusion_model
    )
    layer = next(one for name, one in unet.named_modules() if name.endswith("attn2"))
    layer.forward = lambda *given, own=layer.forward, **more: own(*given, **more)
    seen = []
    hook = unet.register_forward_pre_hook(lambda module, args: seen.append(len(args[0])))
    try:
        _, _, sampling = drawn(webui)
    finally:
        del layer.forward
        hook.remove()
    assert set(seen) == {1}
    assert sampling.choices[0]


def test_the_refiner_does_not_switch_within_a_draft(webui):
    seen = []

    def watch(job):
        job.refiner_checkpoint_info, job.refiner_switch_at = "another", 0.2
        forward = job.denoiser.forward

        def seeing(*given, **more):
            seen.append((job.refiner_checkpoint_info, job.refiner_switch_at))
            return forward(*given, **more)

        job.denoiser.forward = seeing

    drawn(webui, prepare=watch)
    assert seen == [(None, None)] * 4 + [("another", 0.2)] * 8


def decoder(webui, monkeypatch, failing=()):
    """The host's, which notes which it was asked for; 0 stands for that of its settings."""
    common, asked = sys.modules["modules.sd_samplers_common"], []

    def single_sample_to_image(x0, approximation=0):
        asked.append(approximation)
        if approximation in failing:
            raise RuntimeError("no decoder")
        return f"{float(x0.double().sum()):.6f}"

    monkeypatch.setattr(common, "single_sample_to_image", single_sample_to_image, raising=False)
    return asked


@pytest.mark.parametrize(("failing", "asked"), [((), [0]), ((0,), [0, 2])])
def test_the_embedded_model_s_drafts_are_shown_by_its_own_decoder(webui, monkeypatch, failing, asked):
    seen = decoder(webui, monkeypatch, failing)
    webui.shared.opts.live_previews_enable = False
    previews = sys.modules["lib_decouple.hosts.previews"]
    monkeypatch.setattr(previews, "profile_of_model", lambda _: EMBEDDED["decouple-drawn"])
    assert previews.picture(torch.zeros(4, 8, 8)) == "0.000000"
    assert seen == asked


@pytest.mark.parametrize(
    ("live", "failing", "asked"),
    [(False, (), [2]), (True, (), [0]), (True, (0,), [0, 2]), (True, (0, 2), [0, 2]), (False, (2,), [2])],
)
def test_what_drafts_look_like_is_kept_where_it_is_wanted(webui, monkeypatch, live, failing, asked):
    seen = decoder(webui, monkeypatch, failing)
    webui.shared.opts.live_previews_enable = live
    drafting, made = sys.modules["lib_decouple.hosts.drafting"], []
    monkeypatch.setattr(drafting, "draft", lambda *given, own=drafting.draft: made.extend(own(*given)) or made[-4:])
    found = []
    for wanted in (False, True):
        job, x = job_of(webui, [PROMPT], (3,))
        sampling = webui.adapter.SamplingPass(job, CHOOSE, Looking(drafts=wanted))
        sampling.attach(x)
        found.append((job.sampler.sample(job, x), sampling.choices[0]))
        if not wanted:
            assert (sampling.choices[0].pictures, seen) == ({}, [])
    (plain, without), (looked_at, choice) = found
    assert torch.equal(plain, looked_at)
    assert (choice.drawn, choice.scores) == (without.drawn, without.scores)
    assert seen == asked * 4
    expected = {seed: f"{float(one.x0.double().sum()):.6f}" for seed, one in zip(choice.scores, made[4:])}
    assert choice.pictures == ({} if asked[-1] in failing else expected)
    assert "pictures" not in choice.as_dict()
