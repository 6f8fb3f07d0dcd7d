"""The A1111 adapter on the real UNet of ``ldm`` and the stand-in of the host in host.py."""

from __future__ import annotations

import dataclasses
import importlib
import json
from dataclasses import asdict
from types import SimpleNamespace

import pytest
import torch

from lib_decouple.core.presence import Curve, Level
from lib_decouple.core.trace import measure
from lib_decouple.hosts import reasons
from lib_decouple.hosts.base import Looking
from lib_decouple.hosts.curves import as_dict
from lib_decouple.hosts.denoisers import cross_attention_layers
from lib_decouple.hosts.ldm import Unsupported, main_calls, pieces, plan_image
from lib_decouple.prompt.align import EntityNotFound
from lib_decouple.settings import Settings

from . import host as stand_in

openaimodel = pytest.importorskip(
    "ldm.modules.diffusionmodules.openaimodel", reason="ldm's UNet is not installed (stable-diffusion-sdkit)"
)
BOTH = Settings(enabled=True, entities=("cat", "dog"), size=0.3)


@pytest.fixture(scope="module")
def unet():
    torch.manual_seed(0)
    made = openaimodel.UNetModel(
        image_size=8, in_channels=4, out_channels=4, model_channels=32, num_res_blocks=1, attention_resolutions=[1, 2],
        channel_mult=[1, 2, 2], num_heads=4, use_spatial_transformer=True, context_dim=16, legacy=False,
        use_checkpoint=False,
    ).eval()  # fmt: skip
    for parameter in made.parameters():  # ldm starts its output layers at zero
        torch.nn.init.normal_(parameter, std=0.2)
    return made


@pytest.fixture
def shared(monkeypatch, unet):
    return stand_in.install(monkeypatch, unet)


@pytest.fixture
def a1111(shared):
    return importlib.import_module("lib_decouple.hosts.a1111")


def noise(count=1):
    return torch.randn(count, 4, 8, 8, generator=torch.Generator().manual_seed(5)) * 14


def drawn(a1111, shared, prompts, settings=None, prepare=None, looking=None, **given):
    job = stand_in.Job(shared, prompts, **given)
    sampling = None
    if settings:
        sampling = a1111.SamplingPass(job, settings, looking)
        sampling.attach()
    if prepare:
        prepare(job)
    return job.sample(noise(len(prompts))), job, sampling


def untouched(job, func=stand_in.euler):
    unet = job.denoiser.unet
    return (
        job.sampler.func is func
        and "forward" not in vars(job.denoiser)
        and not any(m._forward_pre_hooks or m._forward_hooks for m in unet.modules())
        and all(p.requires_grad for p in unet.parameters())
    )


# ---------------------------------------------------------------- ldm


def test_layers_in_order_of_execution_with_their_factor(unet):
    order = []
    layers = cross_attention_layers(unet)
    handles = [layer.module.register_forward_hook(lambda *_, name=layer.name: order.append(name)) for layer in layers]
    with torch.no_grad():
        unet(noise(), torch.ones(1), context=torch.zeros(1, 77, 16))
    for handle in handles:
        handle.remove()
    assert order == [layer.name for layer in layers]
    assert [layer.factor for layer in layers] == [1, 2, 4, 2, 2, 1, 1]


def test_another_network_is_refused():
    with pytest.raises(Unsupported, match="this model can't be guided"):
        cross_attention_layers(torch.nn.Linear(1, 1))


def test_main_calls():
    assert main_calls("sample_euler", 3) == {0: 0, 1: 1, 2: 2}
    assert main_calls("sample_heun", 3) == {0: 0, 2: 1, 4: 2}
    assert [list(main_calls("sample_heunpp2", n)) for n in (1, 2, 3, 4)] == [[0], [0, 2], [0, 3, 5], [0, 3, 6, 8]]
    assert main_calls("plms", 3) == {0: 0, 2: 1, 3: 2}
    assert list(main_calls("sample_dpm_fast", 6)) == [0, 3, 5]
    assert list(main_calls("sample_dpm_fast", 7)) == [0, 3, 6]
    assert list(main_calls("sample_dpm_fast", 8)) == [0, 3, 6]
    with pytest.raises(Unsupported, match="LCM"):
        main_calls("sample_lcm", 3)
    with pytest.raises(Unsupported, match=r"\(sample_mine\)"):
        main_calls("sample_mine", 3)


def tokenize(text):
    return pieces(stand_in.Clip().chunks(text), stand_in.Clip.tokenizer.convert_ids_to_tokens)


def test_pieces_across_chunks_and_embeddings():
    assert [(p.position, p.text) for p in tokenize("a cat BREAK a dog")] == [
        (1, "a</w>"), (2, "cat</w>"), (78, "a</w>"), (79, "dog</w>"),
    ]  # fmt: skip
    assert [(p.position, p.text) for p in tokenize("a <ti> dog")][1:] == [
        (2, ""), (3, ""), (4, "my embedding</w>"), (5, "dog</w>"),
    ]  # fmt: skip
    last = tokenize("nice, " * 40 + "cat")[-1]
    assert (last.position, last.chunk) == (77 + 80 - 75 + 1, 1)
    assert [piece.chunk for piece in tokenize("a cat BREAK a <ti> BREAK dog")] == [0, 0, 1, 1, 1, 1, 2]
    assert tokenize("") == []


def test_plan_of_parts_and_of_a_prompt_that_changes():
    plan = plan_image(["a cat", "a dog and a cat"], ["cat", "dog", "cat@2"], tokenize)
    assert [(e.part, e.tokens) for e in plan.entities] == [(0, (2,)), (1, (2,)), (1, (5,))]
    assert plan.parts == 2
    assert plan.end == 6
    assert plan_image(["a cat"], ["cat", "dog"], tokenize, others=["a dog"]).names == ("cat",)
    with pytest.raises(EntityNotFound, match='"dog" is not in the prompt'):
        plan_image(["a cat"], ["cat", "dog"], tokenize, others=["a bird"])
    assert plan_image(["a cat"], ["cat", "dog"], tokenize, skip_missing=True).names == ("cat",)
    assert plan_image(["a cat and a dog"], [], tokenize).names == ("cat", "dog")


@pytest.mark.parametrize(
    ("texts", "weights", "expected"),
    [
        (["a red apple and a green apple"], [1.0], [("red apple", 0, (2, 3)), ("green apple", 0, (6, 7))]),
        (["a cat", "a dog"], [1.0, -0.5], [("cat", 0, (2,))]),
        (["a cat", "a dog"], [1.0, 0.7], [("cat", 0, (2,)), ("dog", 1, (2,))]),
        (["a cat and a cat"], [1.0], [("cat", 0, (2,)), ("cat@2", 0, (5,))]),
        (["a man with a hat and a dog"], [1.0], [("man", 0, (2,)), ("dog", 0, (8,))]),
        (["mutual#kiss, cat, dog"], [1.0], [("cat", 0, (4,)), ("dog", 0, (6,))]),
    ],
)
def test_what_is_found_stands_where_the_prompt_names_it(texts, weights, expected):
    plan = plan_image(texts, [], tokenize, weights=weights)
    assert [(one.name, one.part, one.tokens) for one in plan.entities] == expected


# ---------------------------------------------------------------- the adapter


def test_guided_and_everything_restored(a1111, shared):
    plain, _, _ = drawn(a1111, shared, ["a cat and a dog"])
    guided, job, sampling = drawn(a1111, shared, ["a cat and a dog"], BOTH)
    assert not torch.equal(plain, guided)
    assert untouched(job)
    assert sampling.stood_aside == ""
    (trace,) = sampling.traces
    assert trace.entities == ("cat", "dog")
    assert [record.step for record in trace.steps] == [0, 1, 2]
    assert [record.update_norm > 0 for record in trace.steps] == [True, True, False]


def test_the_sampler_goes_on_with_the_guided_latents(a1111, shared):
    _, plain, _ = drawn(a1111, shared, ["a cat and a dog"])
    _, job, sampling = drawn(a1111, shared, ["a cat and a dog"], BOTH)
    x, moved = plain.denoiser.seen[0], job.denoiser.seen[0]
    share = sampling.traces[0].steps[0].update_norm
    assert float((moved - x).norm() / x.norm()) == pytest.approx(share, rel=1e-4)
    with torch.no_grad():
        sigma = torch.tensor([14.0])
        job.denoiser.step = 0
        denoised = type(job.denoiser).forward(
            job.denoiser, moved, sigma, cond=job.cond, uncond=None, cond_scale=1, s_min_uncond=0,
            image_cond=torch.zeros(1, 5, 1, 1),
        )  # fmt: skip
        following = moved + (moved - denoised) / 14 * (10.5 - 14)
    second = job.denoiser.seen[1]
    # What is left between them is the second step's own update.
    assert float((second - following).norm() / following.norm()) == pytest.approx(
        sampling.traces[0].steps[1].update_norm, rel=1e-2
    )


def test_the_tensor_handed_in_is_not_changed(a1111, shared):
    job = stand_in.Job(shared, ["a cat and a dog"])
    a1111.SamplingPass(job, BOTH).attach()
    x = noise()
    job.sample(x)
    assert torch.equal(x, noise())


def test_an_image_of_a_batch_moves_as_alone(a1111, shared):
    prompts = ["a dog", "a cat AND a dog", "a cat and a dog"]
    whole, _, sampling = drawn(a1111, shared, prompts, BOTH)
    job = stand_in.Job(shared, prompts[1:2])
    a1111.SamplingPass(job, BOTH).attach()
    alone = job.sample(noise(3)[1:2])
    torch.testing.assert_close(whole[1:2], alone, rtol=1e-3, atol=1e-3)
    assert '"cat" is not in the prompt' in sampling.left_alone[0]
    assert [len(trace.steps) for trace in sampling.traces] == [0, 3, 3]


def test_positions_follow_prompt_editing(a1111, shared, monkeypatch):
    seen = []
    whole = a1111.sampling.make_guide

    def spied(settings, unet, layers, plans, *args, **kwargs):
        seen.append([(e.name, e.tokens) for e in plans[0].entities])
        return whole(settings, unet, layers, plans, *args, **kwargs)

    monkeypatch.setattr(a1111.sampling, "make_guide", spied)
    settings = Settings(enabled=True, entities=("cat", "fox", "dog"), steps=4)
    _, _, sampling = drawn(a1111, shared, ["a [cat:fox:1] and a dog"], settings)
    assert seen == [[("cat", (2,)), ("dog", (5,))], [("fox", (2,)), ("dog", (5,))]]
    assert sampling.traces[0].entities == ("cat", "dog", "fox")


def test_an_interrupted_job_is_not_guided(a1111, shared):
    shared.state.interrupted = True
    _, _, sampling = drawn(a1111, shared, ["a cat and a dog"], BOTH)
    assert sampling.traces[0].steps == []


def test_an_unknown_sampler_stands_aside(a1111, shared):
    def mine(*args, **kwargs):
        return stand_in.euler(*args, **kwargs)

    plain, _, _ = drawn(a1111, shared, ["a cat and a dog"])
    same, job, sampling = drawn(a1111, shared, ["a cat and a dog"], BOTH, func=mine)
    assert torch.equal(plain, same)
    assert "(mine)" in sampling.stood_aside
    assert job.comments == [f"Attention Decoupling stood aside: {sampling.stood_aside}"]
    assert untouched(job, mine)


EVERYTHING = Looking(after=True, moments=True, live=lambda: True)
LATER = Settings(enabled=True, entities=("cat", "dog"), size=0.3, start=1, steps=3)


@pytest.mark.parametrize("settings", [BOTH, LATER], ids=["from the first step", "from the second"])
def test_looks_change_nothing(a1111, shared, settings):
    prompts = ["a cat and a dog", "a cat AND a dog"]
    torch.manual_seed(1)
    plain, _, _ = drawn(a1111, shared, prompts, settings)
    state = torch.random.get_rng_state()
    torch.manual_seed(1)
    seen, job, sampling = drawn(a1111, shared, prompts, settings, looking=EVERYTHING)
    assert torch.equal(plain, seen)
    assert torch.equal(state, torch.random.get_rng_state())
    assert untouched(job)
    for k, trace in enumerate(sampling.traces):
        assert list(trace.moments) == ["unguided", "first", "last"]
        assert [record.after is not None for record in trace.steps] == [record.guided for record in trace.steps]
        assert all(record.maps is None for record in trace.steps)
        assert sampling.maps[k].step == trace.steps[-1].step
        assert torch.equal(sampling.maps[k].maps, trace.moments["last"].maps)
    assert (sampling.step, sampling.total) == (3, 4)


def test_unwatched_and_unasked_nothing_more_is_done(a1111, shared, monkeypatch):
    passes = []
    whole = a1111.SamplingPass.conditional_pass

    def counted(self, *args):
        run = whole(self, *args)
        return lambda *given: passes.append(given) or run(*given)

    monkeypatch.setattr(a1111.SamplingPass, "conditional_pass", counted)
    _, _, sampling = drawn(a1111, shared, ["a cat and a dog"], LATER)
    assert len(passes) == 4  # two gradients, and what each update does, as few are guided
    assert (sampling.maps, sampling.traces[0].moments) == ({}, {})
    passes.clear()
    _, _, sampling = drawn(a1111, shared, ["a cat and a dog"], LATER, looking=Looking(moments=True))
    assert len(passes) == 4
    assert list(sampling.traces[0].moments) == ["unguided", "first", "last"]
    assert sampling.maps == {}


def in_one_call(job):
    job.negative = shared_negative(job)


def shared_negative(job, words="nothing"):
    encoded = stand_in.Clip().encode(words)
    return encoded.expand(len(job.prompts), -1, -1)


def uneven(job):
    job.negative = shared_negative(job, "nothing BREAK at all")


def one_by_one(job):
    job.negative, job.denoiser.batch_cond_uncond = shared_negative(job), False


def uneven_one_by_one(job):
    uneven(job)
    job.denoiser.batch_cond_uncond = False


def skipped(job):
    job.negative, job.denoiser.skip_uncond = shared_negative(job), (0, 3)


MANY_STEPS = Settings(enabled=True, entities=("cat", "dog"), size=0.3, steps=6)
ARRANGEMENTS = (lambda job: None, in_one_call, uneven, one_by_one, uneven_one_by_one, skipped)


@pytest.mark.parametrize("arrange", ARRANGEMENTS, ids=lambda one: one.__name__)
def test_what_moves_nothing_costs_no_pass_and_is_what_a_pass_would_have_shown(a1111, shared, unet, arrange):
    prompts = ["a cat and a dog", "a bird", "a dog AND a cat"]
    calls, own = [], []
    counter = unet.register_forward_pre_hook(lambda module, args: calls.append(torch.is_grad_enabled()))
    seen = []

    def prepare(job):
        arrange(job)
        forward = job.denoiser.forward

        def spied(x, sigma, **given):
            seen.append((x.clone(), sigma.clone(), given, job.denoiser.step))
            before = len(calls)
            found = forward(x, sigma, **given)
            own.append(len(calls) - before)
            return found

        job.denoiser.forward = spied

    try:
        looked, job, sampling = drawn(a1111, shared, prompts, MANY_STEPS, prepare, EVERYTHING, steps=8)
        guided = sum(calls)
        plain, _, _ = drawn(a1111, shared, prompts, MANY_STEPS, arrange, steps=8)
    finally:
        counter.remove()
    assert torch.equal(looked, plain)
    assert (guided, len(calls[: sum(own) + 6])) == (6, sum(own) + 6)
    assert [trace.looks for trace in sampling.traces] == [0, 0, 0]
    for k in (0, 2):
        records = sampling.traces[k].steps
        assert [record.step for record in records] == list(range(7))
        for record in records:
            x, sigma, given, step = seen[record.step]
            job.denoiser.step = step
            run, reader = sampling.conditional_pass(job.denoiser, sigma, given), reader_for(sampling)
            with torch.no_grad(), reader.reading() as capture:
                run(x[[k]], [k])
            (expected,) = reader.maps(capture, x.shape[-2:], [k])
            found = record.after if record.guided else record.before
            measured = measure(sampling.traces[k].entities, expected)
            for name, values in asdict(measured).items():
                assert getattr(found, name) == pytest.approx(values, abs=1e-5), (record.step, name)
    assert sampling.traces[1].steps == []


def reader_for(sampling):
    guide = sampling._prepare(sampling.p.denoiser, sampling.p.cond).guide
    return guide.gradient.reader


def test_a_host_that_passes_the_model_s_attention_by_is_not_looked_at_and_loses_nothing(a1111, shared, unet, caplog):
    plain, _, _ = drawn(a1111, shared, ["a cat and a dog"], MANY_STEPS, in_one_call, steps=8)

    def prepare(job):
        in_one_call(job)
        whole, calls = job.denoiser.inner_model, []

        def inner_model(x, sigma, cond):
            calls.append(len(x))
            if len(x) == 2 and calls.count(2) == 1:  # as ControlNet's reference draws a second picture there
                whole(x[:1], sigma[:1], {"c_crossattn": [cond["c_crossattn"][0][1:]]})
            return whole(x, sigma, cond)

        job.denoiser.inner_model = inner_model

    found, _, sampling = drawn(a1111, shared, ["a cat and a dog"], MANY_STEPS, prepare, EVERYTHING, steps=8)
    assert torch.equal(found, plain)
    assert sampling.stood_aside == ""
    assert [record.update_norm > 0 for record in sampling.traces[0].steps] == [True] * 6
    assert all(record.after is None for record in sampling.traces[0].steps)
    assert caplog.text.count("can't read the maps") == 1


def test_who_watches_can_not_disturb(a1111, shared):
    def fail():
        raise OSError("broken")

    plain, _, _ = drawn(a1111, shared, ["a cat and a dog"], BOTH)
    seen, _, sampling = drawn(a1111, shared, ["a cat and a dog"], BOTH, looking=Looking(live=fail))
    assert torch.equal(plain, seen)
    assert sampling.stood_aside == ""


def test_overlap_of_one_entity_stands_aside(a1111, shared):
    _, _, sampling = drawn(a1111, shared, ["a cat"], Settings(enabled=True))
    assert sampling.stood_aside.startswith("only “cat” was found in the prompt, and com keeps entities apart")
    _, _, sampling = drawn(a1111, shared, ["a cat"], Settings(enabled=True, loss="intensity"))
    assert sampling.stood_aside == ""


@pytest.mark.parametrize(
    "phase", ["plan_image", "cross_attention_layers", "make_guide", "conditional_pass", "main_calls"]
)
@pytest.mark.parametrize("error", [RuntimeError("broken"), torch.cuda.OutOfMemoryError("broken"), KeyError("broken")])
def test_a_failure_costs_nothing(a1111, shared, monkeypatch, phase, error):
    def fail(*args, **kwargs):
        raise error

    plain, _, _ = drawn(a1111, shared, ["a cat and a dog"])
    owner = a1111.SamplingPass if phase == "conditional_pass" else a1111.sampling
    monkeypatch.setattr(owner, phase, fail)
    same, job, sampling = drawn(a1111, shared, ["a cat and a dog"], BOTH)
    assert torch.equal(plain, same)
    assert sampling.stood_aside.rpartition("4: ")[2] in (reasons.UNKNOWN, reasons.OUT_OF_MEMORY)
    assert ("memory" in sampling.stood_aside) == isinstance(error, torch.cuda.OutOfMemoryError)
    assert len(job.comments) == 1
    assert untouched(job)


def test_the_host_s_own_exceptions_pass_and_leave_no_hook(a1111, shared):
    class Interrupted(BaseException):
        pass

    def prepare(job):
        whole = type(job.denoiser).forward

        def forward(x, sigma, **kwargs):
            if job.denoiser.step == 1:
                raise Interrupted
            return whole(job.denoiser, x, sigma, **kwargs)

        job.denoiser.forward = forward
        job.theirs = forward
        jobs.append(job)

    jobs = []
    with pytest.raises(Interrupted):
        drawn(a1111, shared, ["a cat and a dog"], BOTH, prepare)
    (job,) = jobs
    assert job.denoiser.forward is job.theirs
    assert job.sampler.func is stand_in.euler


FITS = {
    "one image at a time": lambda rows, again: rows == 1,
    "and computed twice": lambda rows, again: rows == 1 and again,
    "in no way": lambda rows, again: False,
}


def tight(unet, fits, when=lambda: True):
    """Memory ends in a guided pass of ``unet`` wherever it does not fit; gives a function that heals it."""

    def full(module, args):
        if torch.is_grad_enabled() and when() and not fits(len(args[0]), "forward" in vars(inner)):
            raise RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`")

    inner = next(module for module in unet.modules() if type(module).__name__ == "ResBlock")
    return unet.input_blocks[0].register_forward_pre_hook(full).remove


@pytest.mark.parametrize("first_step", [0, 1])
@pytest.mark.parametrize("fits", FITS)
def test_where_memory_ends_less_is_tried_before_guidance_gives_up(a1111, shared, unet, fits, first_step):
    prompts = ["a cat and a dog", "a dog and a cat"]
    plain, _, _ = drawn(a1111, shared, prompts)
    whole, _, _ = drawn(a1111, shared, prompts, BOTH)
    jobs = []
    heal = tight(unet, FITS[fits], lambda: jobs[0].denoiser.step >= first_step)
    try:
        found, job, sampling = drawn(a1111, shared, prompts, BOTH, jobs.append)
    finally:
        heal()
    assert untouched(job)
    if fits != "in no way":
        assert sampling.stood_aside == ""
        torch.testing.assert_close(found, whole, rtol=1e-3, atol=1e-3)
        return
    assert sampling.stood_aside.startswith(f"at step {first_step + 1} of 4: out of memory")
    assert torch.equal(found, plain) == (first_step == 0)
    assert torch.isfinite(found).all()


def test_what_was_learned_about_memory_holds_when_the_prompt_changes(a1111, shared, unet):
    passes = []
    settings = Settings(enabled=True, entities=("cat", "fox", "dog"), steps=4)
    heal = tight(unet, lambda rows, again: passes.append(rows) or rows == 1)
    try:
        _, _, sampling = drawn(a1111, shared, ["a [cat:fox:1] and a dog"] * 2, settings)
    finally:
        heal()
    assert sampling.stood_aside == ""
    assert passes.count(2) == 1  # at the first step alone, though another guide is made at the second


# ---------------------------------------------------------------- others in the attention's place


class Region:
    """As Regional Prompter and NegPiP: in every cross-attention's place, ready only when its callback was called."""

    def __init__(self, unet):
        self.count, self.turns, self.conds = 0, [], None
        self.layers = [layer.module for layer in cross_attention_layers(unet)]
        for module in self.layers:
            module.forward = self.hooked(module, module.forward)

    def hooked(self, module, forward):
        def instead(x, context=None, mask=None):
            assert self.conds is not None, "object of type 'NoneType' has no len()"
            self.count = (self.count + 1) % len(self.layers)
            self.turns.append(len(x))
            return forward(x, context=context, mask=mask)

        return instead

    def ready(self, params):
        assert params.text_cond.shape[0] == len(params.x) - 1  # conditional rows, then the unconditional one
        self.conds = params.x.shape

    def remove(self):
        for module in self.layers:
            del module.forward


def test_who_counts_in_the_attentions_place_finds_what_it_expects_and_no_trace_of_us(a1111, shared, unet):
    import modules

    region = Region(unet)
    modules.script_callbacks.on_cfg_denoiser.append(region.ready)
    counts = []

    def spy(job):
        forward = job.denoiser.forward

        def seen(x, sigma, **given):
            counts.append((region.count, list(region.turns), region.conds))
            region.conds = x.shape  # as the host's own callback comes within forward
            found = forward(x, sigma, **given)
            region.conds, region.turns[:] = None, []
            return found

        job.denoiser.forward = seen

    try:
        moved, _, sampling = drawn(a1111, shared, ["a cat and a dog"], BOTH, prepare=spy)
    finally:
        region.remove()
    plain, _, _ = drawn(a1111, shared, ["a cat and a dog"])
    assert sampling.stood_aside == ""
    assert [trace.steps[0].update_norm > 0 for trace in sampling.traces] == [True]
    assert not torch.equal(moved, plain)
    assert counts == [(0, [], None)] * 4


# ---------------------------------------------------------------- telling which entity is there


SILENT = Settings(enabled=True, entities=("cat", "dog"), size=0.3, look="off")
"""Steps of the stand-in's ten fall from 14 to 0: 1.4 is the first level to be read, 0 no call's."""


def own_pass_at(sampling, job, seen, index, images):
    x, sigma, given, step = seen[index]
    job.denoiser.step = step
    run, reader = sampling.conditional_pass(job.denoiser, sigma, given), reader_for(sampling)
    with torch.no_grad(), reader.reading() as capture:
        run(x[list(images)], list(images))
    return float(sigma[0]), reader.maps(capture, x.shape[-2:], images)


def spying(seen):
    def prepare(job):
        job.negative = shared_negative(job)
        forward = job.denoiser.forward

        def spied(x, sigma, **given):
            seen.append((x.clone(), sigma.clone(), given, job.denoiser.step))
            return forward(x, sigma, **given)

        job.denoiser.forward = spied

    return prepare


def test_what_is_told_is_read_off_the_hosts_own_pass_and_changes_nothing(a1111, shared, unet):
    prompts, seen, calls = ["a cat and a dog", "a bird", "a dog AND a cat"], [], []
    counter = unet.register_forward_pre_hook(lambda module, args: calls.append(len(args[0])))
    try:
        told, job, sampling = drawn(a1111, shared, prompts, BOTH, spying(seen), steps=10)
        with_it = len(calls)
        silent, _, quiet = drawn(a1111, shared, prompts, SILENT, spying([]), steps=10)
    finally:
        counter.remove()
    assert torch.equal(told, silent)
    assert with_it == len(calls) - with_it
    assert quiet.teller.told == [None] * 3
    sigma, maps = own_pass_at(sampling, job, seen, 9, [0, 2])  # the first at or below 1.6, which is the last here
    for found, expected in zip((sampling.teller.told[0], sampling.teller.told[2]), maps):
        assert found.sigma == pytest.approx(sigma)
        assert found.chances is None
        cat, dog = expected.flatten(1)
        leads = {"cat": max(0.0, float((cat - dog).max())), "dog": max(0.0, float((dog - cat).max()))}
        assert found.scores == pytest.approx(leads, abs=1e-5)
    assert sampling.teller.told[1] is None


def unknown_sampler(*args, **kwargs):
    return stand_in.euler(*args, **kwargs)


@pytest.mark.parametrize(
    ("settings", "prompt", "more", "entities"),
    [
        (BOTH, "a cat and a dog", {"func": unknown_sampler}, ["cat", "dog"]),
        (Settings(enabled=True, start=20, steps=30), "a cat and a dog", {}, ["cat", "dog"]),
        (Settings(enabled=True), "a cat", {}, ["cat"]),
        (Settings(enabled=True, entities=("cat", "owl")), "a cat and a dog", {}, ["cat"]),
    ],
    ids=["unknown sampler", "no guided step", "one entity", "an entity that is not there"],
)
def test_it_is_told_where_guidance_stands_aside(a1111, shared, settings, prompt, more, entities):
    plain, _, _ = drawn(a1111, shared, [prompt], steps=10, **more)
    found, _, sampling = drawn(a1111, shared, [prompt], settings, steps=10, **more)
    assert torch.equal(found, plain)
    assert sampling.stood_aside
    assert list(sampling.teller.told[0].scores) == entities


def test_it_is_told_where_guidance_fails(a1111, shared, unet):
    heal = tight(unet, FITS["in no way"])
    try:
        _, _, sampling = drawn(a1111, shared, ["a cat and a dog"], BOTH, steps=10)
    finally:
        heal()
    assert "out of memory" in sampling.stood_aside
    assert list(sampling.teller.told[0].scores) == ["cat", "dog"]


@pytest.mark.parametrize("where", ["noise_level", "conditional_rows", "_plan_to_tell", "unet"])
def test_a_failure_to_tell_costs_neither_picture_nor_guidance(a1111, shared, monkeypatch, where, caplog):
    expected, _, _ = drawn(a1111, shared, ["a cat and a dog"], SILENT, steps=10)
    whole, jobs = getattr(a1111.SamplingPass, where), []

    def fail(self, *args):
        if where != "unet" or (jobs and jobs[0].denoiser.step == 9):
            raise RuntimeError("broken")
        return whole(self, *args)

    monkeypatch.setattr(a1111.SamplingPass, where, fail)
    found, job, sampling = drawn(a1111, shared, ["a cat and a dog"], BOTH, jobs.append, steps=10)
    assert torch.equal(found, expected)
    assert (sampling.stood_aside, sampling.teller.told) == ("", [None])
    assert caplog.text.count("can't tell which entity is there") == 1
    assert untouched(job)


def test_a_curve_of_the_checkpoint_makes_chances(a1111, shared, tmp_path, monkeypatch):
    import modules

    monkeypatch.setattr(modules.paths_internal, "data_path", str(tmp_path))
    folder = tmp_path / "attention-decoupling" / "curves"
    folder.mkdir(parents=True)
    shared.sd_model.sd_checkpoint_info = SimpleNamespace(sha256="ab" * 32)
    file = folder / f"{'ab' * 32}.json"
    file.write_text(json.dumps(as_dict(Curve((Level(2.0, 0.0, 100.0),)), "ab" * 32)))
    _, _, sampling = drawn(a1111, shared, ["a cat and a dog"], BOTH, steps=10)
    assert sampling.teller.told[0].words() == "cat ✓, dog ✓"
    for bad in (
        "{",
        "[]",
        '{"checkpoint": "other"}',
        json.dumps({"checkpoint": "ab" * 32, "score": "lead", "levels": [[1, 2]]}),
    ):
        file.write_text(bad)
        _, _, sampling = drawn(a1111, shared, ["a cat and a dog"], BOTH, steps=10)
        assert sampling.teller.told[0].words().startswith("attention weakest for ")


def test_the_noise_level_of_a_sampler_with_timesteps(a1111, shared):
    job = stand_in.Job(shared, ["a cat"])
    sampling = a1111.SamplingPass(job, BOTH)
    assert sampling.noise_level(job.denoiser, torch.tensor([3.0])) == 3.0
    job.denoiser.alphas = torch.linspace(0.999, 0.005, 1000)
    kept = float(job.denoiser.alphas[500])
    assert sampling.noise_level(job.denoiser, torch.tensor([500])) == pytest.approx(((1 - kept) / kept) ** 0.5)


LATE = Settings(enabled=True, entities=("cat", "dog"), size=0.3, steps=6, gradient="late")


def spy(job, seen):
    forward = job.denoiser.forward

    def spied(x, sigma, **given):
        step, made = job.denoiser.step, forward(x, sigma, **given)
        seen.append((x.clone(), sigma.clone(), given, step, made.clone()))
        return made

    job.denoiser.forward = spied


@pytest.mark.parametrize("rule", ["relative", "attend-excite"])
@pytest.mark.parametrize("arrange", ARRANGEMENTS, ids=lambda one: one.__name__)
def test_a_late_gradient_is_that_of_the_hosts_own_pass_which_stays_as_it_is(a1111, shared, unet, arrange, rule):
    prompts, seen = ["a cat and a dog", "a bird", "a dog AND a cat"], []
    settings = dataclasses.replace(LATE, rule=rule, size=0.3 if rule == "relative" else 5.0)
    with_grad = []
    counter = unet.register_forward_pre_hook(lambda module, args: with_grad.append(torch.is_grad_enabled()))

    def prepare(job):
        arrange(job)
        spy(job, seen)

    try:
        found, job, sampling = drawn(a1111, shared, prompts, settings, prepare, steps=8)
    finally:
        counter.remove()
    assert (sampling.stood_aside, sampling.exact_since) == ("", "")
    del job.denoiser.forward
    assert untouched(job)
    assert [trace.passes for trace in sampling.traces] == [0, 0, 0]
    assert not any(with_grad)  # no pass of our own: those begin with gradients on
    assert [[record.step for record in trace.steps] for trace in sampling.traces] == [
        list(range(7)),
        [],
        list(range(7)),
    ]
    guide, given = sampling._prepare(job.denoiser, job.cond).guide, seen[0][2]
    whole = type(job.denoiser).forward
    x, waiting = noise(3), None
    for k, (came, sigma, _, step, made) in enumerate(seen):
        if waiting is not None:
            # The scaled latents' gradient of the step before, moved at the noise level that is now.
            level = sigma[0]
            update = guide.rule.update(
                x, waiting / (1 + level**2).sqrt(), k - 1, 8, guide.schedule.place(k - 1, 8), level
            )
            x = x + update
            shares = (update.flatten(1).norm(dim=1) / (x - update).flatten(1).norm(dim=1)).tolist()
            for image in (0, 2):
                record = sampling.traces[image].steps[k - 1]
                assert record.update_norm == pytest.approx(shares[image], rel=1e-2)
        torch.testing.assert_close(came, x, rtol=2e-3, atol=2e-3 * float(x.abs().max()))
        x = came  # so that rounding does not add up
        job.denoiser.step = step
        with torch.no_grad():
            assert torch.equal(whole(job.denoiser, came, sigma, **given), made)
        waiting = None
        if guide.schedule.guided(k, 8):
            job.denoiser.step = step
            run = sampling.conditional_pass(job.denoiser, sigma, given)
            gradient = guide.gradient(x[[0, 2]], [0, 2], run).gradient
            waiting = torch.zeros_like(x)
            waiting[[0, 2]] = gradient * (1 + sigma[0] ** 2).sqrt()
        x = x + (x - made) / sigma[0] * ((14.0 * (7 - k) / 8) - sigma[0])
    torch.testing.assert_close(found, x, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("error", [RuntimeError("broken"), torch.cuda.OutOfMemoryError("broken"), KeyError("broken")])
@pytest.mark.parametrize("first", [0, 2])
def test_where_a_late_gradient_fails_the_host_keeps_its_pass_and_the_next_is_exact(a1111, shared, unet, error, first):
    failed = []

    def fail(*_):
        if torch.is_grad_enabled() and job_of[0].denoiser.step >= first and not failed:
            failed.append(1)
            raise error

    job_of, seen = [], []
    inner = unet.middle_block.register_forward_pre_hook(fail)

    def prepare(job):
        in_one_call(job)
        spy(job, seen)
        job_of.append(job)

    try:
        _, job, sampling = drawn(a1111, shared, ["a cat and a dog"], LATE, prepare, steps=8)
    finally:
        inner.remove()
    assert failed
    assert sampling.stood_aside == ""
    assert sampling.exact_since.startswith(f"the gradient is exact from step {first + 2} of 8 on: ")
    assert len(job.comments) == 1
    records = sampling.traces[0].steps
    assert [record.step for record in records if record.guided and not record.passes] == list(range(first))
    assert [record.step for record in records if record.passes] == list(range(first + 1, 6))
    whole = type(job.denoiser).forward
    for x, sigma, given, step, made in seen:
        job.denoiser.step = step
        with torch.no_grad():
            assert torch.equal(whole(job.denoiser, x, sigma, **given), made)


@pytest.mark.parametrize(
    ("changes", "exact"),
    [
        ({"steps": 4}, [0, 1, 2, 3]),
        ({"steps": 8}, [7]),
        ({"refine_steps": (1,), "refine_rounds": 2}, [1]),
        ({"recompute": "on"}, list(range(6))),
        ({"one_at_a_time": True}, list(range(6))),
    ],
    ids=str,
)
def test_where_a_gradient_cannot_wait_it_is_exact(a1111, shared, changes, exact):
    settings = dataclasses.replace(LATE, **changes)
    _, job, sampling = drawn(a1111, shared, ["a cat and a dog"], settings, in_one_call, steps=8)
    records = [record for record in sampling.traces[0].steps if record.guided]
    assert [record.step for record in records if record.passes] == exact
    assert len(records) == settings.steps
    assert bool(sampling.exact_since) == bool(job.comments) == (len(exact) == 6)


def test_a_late_gradient_waits_over_a_prompt_that_changes(a1111, shared):
    settings = dataclasses.replace(LATE, entities=("cat", "fox", "dog"))
    _, _, sampling = drawn(a1111, shared, ["a [cat:fox:3] and a dog"], settings, in_one_call, steps=8)
    records = sampling.traces[0].steps
    assert [record.step for record in records if record.update_norm > 0] == list(range(6))
    assert sampling.exact_since == ""


def test_late_guidance_is_interrupted_as_any(a1111, shared):
    def interrupt(job):
        in_one_call(job)
        forward = job.denoiser.forward

        def until(x, sigma, **given):
            shared.state.interrupted = job.denoiser.step >= 2
            return forward(x, sigma, **given)

        job.denoiser.forward = until

    _, _, sampling = drawn(a1111, shared, ["a cat and a dog"], LATE, interrupt, steps=8)
    assert [record.step for record in sampling.traces[0].steps] == [0, 1]
    assert sampling.stood_aside == ""


@pytest.mark.parametrize("gradient", ["exact", "late"])
def test_stopping_by_presence_leaves_whole_images_alone_and_needs_a_curve(a1111, shared, monkeypatch, gradient):
    prompts = ["a cat and a dog", "a dog and a cat"]
    settings = dataclasses.replace(LATE, stop="presence", gradient=gradient)
    plain, _, _ = drawn(a1111, shared, prompts, None, in_one_call, steps=8)
    same, job, sampling = drawn(a1111, shared, prompts, settings, in_one_call, steps=8)
    assert torch.equal(plain, same)
    assert sampling.stood_aside.startswith("stop: 'presence' is not possible for this checkpoint")
    assert len(job.comments) == 1
    for middle, moved in ((-1.0, [0, 1]), (2.0, [0, 1, 2, 3, 4, 5])):
        # Noise levels fall 14, 12.25, 10.5 ...: at the third look every entity is there, or none.
        monkeypatch.setattr(a1111.sampling, "curve_of", lambda _, m=middle: Curve((Level(11.0, m, 20.0),)))
        _, _, sampling = drawn(a1111, shared, prompts, settings, in_one_call, steps=8)
        assert (sampling.stood_aside, sampling.exact_since) == ("", "")
        for trace in sampling.traces:
            assert [record.step for record in trace.steps if record.update_norm > 0] == moved
            if gradient == "exact":
                assert trace.passes == len(moved) + (middle < 0)  # the look that found it whole


@pytest.mark.parametrize("changes", [{"factor": 1}, {"treatment": "attend-excite"}, {"combine": "max"}], ids=str)
def test_presence_is_not_told_from_other_maps_than_it_was_learned_on(a1111, shared, monkeypatch, changes):
    monkeypatch.setattr(a1111.sampling, "curve_of", lambda _: Curve((Level(11.0, 0.5, 20.0),)))
    settings = dataclasses.replace(LATE, stop="presence", **changes)
    _, _, sampling = drawn(a1111, shared, ["a cat and a dog"], settings, in_one_call, steps=8)
    assert sampling.stood_aside.startswith("stop: 'presence' is not possible with another factor, layers")
