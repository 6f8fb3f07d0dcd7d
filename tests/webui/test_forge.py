"""The Forge adapter on the real UNet of ``ldm`` and the stand-in of the host in forge_host.py."""

from __future__ import annotations

import sys
from dataclasses import asdict, replace
from types import ModuleType, SimpleNamespace

import pytest
import torch

from lib_decouple.core.gradient import LossGradient
from lib_decouple.core.trace import measure
from lib_decouple.hosts import detect, reasons
from lib_decouple.settings import Settings

from . import forge_host as stand_in
from .host import euler
from .test_a1111 import EVERYTHING, FITS, spy, tight

openaimodel = pytest.importorskip(
    "ldm.modules.diffusionmodules.openaimodel", reason="ldm's UNet is not installed (stable-diffusion-sdkit)"
)
SMOOTH = Settings(enabled=True, entities=("cat", "dog"), size=0.3, loss="com(form=negative)")
SHAPE = {
    "image_size": 8, "in_channels": 4, "out_channels": 4, "model_channels": 32, "num_res_blocks": 1,
    "attention_resolutions": [1, 2], "channel_mult": [1, 2, 2], "num_heads": 4, "use_spatial_transformer": True,
    "context_dim": 16, "legacy": False, "use_checkpoint": False,
}  # fmt: skip


@pytest.fixture(scope="module")
def unet():
    return stand_in.make_unet(openaimodel.UNetModel, **SHAPE)


@pytest.fixture
def shared(monkeypatch, unet):
    return stand_in.install(monkeypatch, unet)


@pytest.fixture
def forge(shared):
    return detect.adapter(shared.sd_model)


def noise(count=1):
    return torch.randn(count, 4, 8, 8, generator=torch.Generator().manual_seed(5)) * 14


def drawn(forge, shared, prompts, settings=None, prepare=None, looking=None, **given):
    job = stand_in.Job(shared, prompts, **given)
    sampling = None
    if settings:
        sampling = forge.SamplingPass(job, settings, looking)
        sampling.attach(noise(len(prompts)))
    if prepare:
        prepare(job)
    return job.sample(noise(len(prompts))), job, sampling


def untouched(job, func=euler):
    unet = job.shared.sd_model.forge_objects.unet.model.diffusion_model
    return (
        job.sampler.func is func
        and "forward" not in vars(job.denoiser)
        and not any(m._forward_pre_hooks or m._forward_hooks for m in unet.modules())
        and all(p.requires_grad and p.is_inference() for p in unet.parameters())
    )


@pytest.fixture
def gradients(monkeypatch):
    """What is found in a job: latents and gradient."""
    found, whole = [], LossGradient.__call__

    def gradient(self, latents, images, run, *more):
        result = whole(self, latents, images, run, *more)
        found.append((latents.clone(), result.gradient))
        return result

    monkeypatch.setattr(LossGradient, "__call__", gradient)
    return found


def reference_gradient(unet, shared, x, sigma, text):
    """On an ordinary UNet with the same weights, residuals out of place, its own attention and loss."""
    plain = openaimodel.UNetModel(**SHAPE).eval()
    plain.load_state_dict({key: value.clone() for key, value in unet.state_dict().items()})
    maps = []

    def explicit(layer):
        def attend(hidden, context=None, mask=None):
            b, n, _ = hidden.shape
            q, k, v = (
                p.view(b, -1, layer.heads, p.shape[-1] // layer.heads).transpose(1, 2)
                for p in (layer.to_q(hidden), layer.to_k(context), layer.to_v(context))
            )
            weights = torch.softmax(q @ k.transpose(2, 3) / q.shape[-1] ** 0.5, dim=-1)
            if n == 4:
                maps.append(weights.mean(1))
            return layer.to_out((weights @ v).transpose(1, 2).reshape(b, n, -1))

        return attend

    for name, layer in plain.named_modules():
        if name.endswith("attn2"):
            layer.forward = explicit(layer)
    context = shared.sd_model.cond_stage_model.encode(text)[None].clone()
    leaf = x.clone().requires_grad_()
    plain(leaf / (sigma**2 + 1).sqrt(), sigma.log()[None] * 250 + 500, context=context)
    mean, at = torch.stack(maps).mean(0)[0], torch.tensor([0.25, 0.75])
    centres = []
    for token in (2, 5):
        share = mean[:, token].view(2, 2) + 1e-8
        share = share / share.sum()
        centres.append(torch.stack([(share.sum(1) * at).sum(), (share.sum(0) * at).sum()]))
    loss = -(centres[0] - centres[1]).square().sum().sqrt()
    return torch.autograd.grad(loss, leaf)[0]


def test_the_stand_in_has_forge_s_obstacles(forge, shared, monkeypatch, caplog):
    monkeypatch.setattr(forge.OrdinaryTensors, "_ordinary", lambda self, value: value)
    _, _, sampling = drawn(forge, shared, ["a cat and a dog"], SMOOTH)
    assert reasons.UNKNOWN in sampling.stood_aside
    assert "Inference tensors cannot be saved for backward" in caplog.text


def test_what_autograd_keeps_is_as_it_was_then(forge, shared):
    sampling = forge.SamplingPass(stand_in.Job(shared, ["a cat and a dog"]), SMOOTH)
    with torch.inference_mode():
        weight, start = torch.full((2, 8), 3.0), torch.arange(16.0).view(2, 8)
        with sampling.differentiable():
            leaf = start.clone().requires_grad_()
            x = leaf * weight
            # The same address at the same version, in two shapes, then written to.
            total = (x.view(8, 2) ** 2).sum() + (x**3).sum()
            x.add_(100.0)
            total = total + (x**2).sum()
            (gradient,) = torch.autograd.grad(total, leaf)
    x = 3 * start
    torch.testing.assert_close(gradient, 3 * (2 * x + 3 * x**2 + 2 * (x + 100)))


@pytest.mark.parametrize("recompute", [False, True])
def test_gradient_of_an_ordinary_unet(forge, shared, unet, gradients, recompute):
    settings = Settings(**{**SMOOTH.as_dict(), "recompute": recompute, "factor": 4})
    _, job, sampling = drawn(forge, shared, ["a cat and a dog"], settings)
    assert sampling.stood_aside == ""
    (x, found), _ = gradients
    wanted = reference_gradient(unet, shared, x, torch.tensor(14.0), "a cat and a dog")
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-3 * float(wanted.abs().max()))
    assert untouched(job)


@pytest.mark.parametrize("func", [euler, stand_in.ddim])
@pytest.mark.parametrize("cfg", [1, 3])
def test_guided_and_everything_restored(forge, shared, func, cfg):
    plain, before, _ = drawn(forge, shared, ["a cat and a dog"], func=func, cfg=cfg)
    guided, job, sampling = drawn(forge, shared, ["a cat and a dog"], SMOOTH, func=func, cfg=cfg)
    assert not torch.equal(plain, guided)
    assert untouched(job, func)
    assert sampling.stood_aside == ""
    (trace,) = sampling.traces
    assert [record.update_norm > 0 for record in trace.steps] == [True, True, False]
    share = float((job.denoiser.seen[0] - before.denoiser.seen[0]).norm() / before.denoiser.seen[0].norm())
    assert share == pytest.approx(trace.steps[0].update_norm, rel=1e-4)
    again, _, _ = drawn(forge, shared, ["a cat and a dog"], func=func, cfg=cfg)
    assert torch.equal(plain, again)


def test_an_image_of_a_batch_with_and_moves_as_alone(forge, shared):
    prompts = ["a cat AND a dog", "a dog AND a cat"]
    settings = Settings(**{**SMOOTH.as_dict(), "entities": ["cat", "dog"]})
    whole, _, _ = drawn(forge, shared, prompts, settings, cfg=3)
    job = stand_in.Job(shared, prompts[1:], cfg=3)
    forge.SamplingPass(job, settings).attach(noise())
    torch.testing.assert_close(whole[1:], job.sample(noise(2)[1:]), rtol=1e-3, atol=1e-3)


def test_masked_images_keep_the_host_s_noise_and_move_inside_alone(forge, shared):
    def masked(job):
        job.denoiser.init_latent = torch.full((1, 4, 8, 8), 0.3)
        job.denoiser.mask = torch.zeros(1, 1, 8, 8)
        job.denoiser.mask[..., :4] = 1
        job.denoiser.nmask = 1 - job.denoiser.mask
        torch.manual_seed(3)

    plain, _, _ = drawn(forge, shared, ["a cat and a dog"], None, masked)
    after_plain = torch.rand(1)
    guided, _, sampling = drawn(forge, shared, ["a cat and a dog"], SMOOTH, masked)
    assert torch.equal(after_plain, torch.rand(1))
    assert sampling.stood_aside == ""
    assert torch.equal(plain[..., :4], guided[..., :4])
    assert not torch.equal(plain[..., 4:], guided[..., 4:])


def test_attached_twice_as_in_hires_guides_once(forge, shared):
    once, _, _ = drawn(forge, shared, ["a cat and a dog"], SMOOTH)
    job = stand_in.Job(shared, ["a cat and a dog"])
    first, second = forge.SamplingPass(job, SMOOTH), forge.SamplingPass(job, SMOOTH)
    original = shared.sd_model.forge_objects.unet
    first.attach(noise())
    shared.sd_model.forge_objects.unet = original  # Forge drops the first patcher
    second.attach(noise())
    assert second.replaces is first
    assert torch.equal(once, job.sample(noise()))
    assert first.traces[0].steps == []
    assert untouched(job)


def reserved(forge, shared, prompts=("a cat and a dog",), x=None, **changes):
    """What a job with these settings asks the host to keep free; the model's own patcher stays as it is."""
    original = shared.sd_model.forge_objects.unet
    settings = Settings(**{**SMOOTH.as_dict(), **changes})
    forge.SamplingPass(stand_in.Job(shared, list(prompts)), settings).attach(noise(len(prompts)) if x is None else x)
    made, shared.sd_model.forge_objects.unet = shared.sd_model.forge_objects.unet, original
    assert original.extra_preserved_memory_during_sampling == 0
    return made.extra_preserved_memory_during_sampling


def test_memory_is_reserved_for_the_configuration_that_runs(forge, shared, unet, monkeypatch):
    alone = reserved(forge, shared)
    assert alone > shared.sd_model.forge_objects.unet.model.memory_required((1, 4, 8, 8))
    parts = ["a cat AND a dog", "a cat AND a dog"]
    assert reserved(forge, shared, parts) == 4 * alone
    assert reserved(forge, shared, parts, one_at_a_time=True) == 2 * alone
    assert reserved(forge, shared, x=torch.zeros(1, 4, 16, 8)) == 2 * alone
    assert reserved(forge, shared, recompute="on") < alone
    assert reserved(forge, shared, recompute="off") == reserved(forge, shared, recompute="auto") == alone
    assert reserved(forge, shared, layers="down") < alone  # the pass ends sooner
    attention = ModuleType("backend.attention")
    monkeypatch.setitem(sys.modules, "backend.attention", attention)
    attention.attention_function = SimpleNamespace(__name__="attention_pytorch")
    assert reserved(forge, shared) == alone
    attention.attention_function = SimpleNamespace(__name__="attention_sub_quad")
    # Four heads' maps of 8x8 by 8x8 pixels, and of 4x4, 2x2 and 2x2 where SD 1's level is the whole pass.
    assert reserved(forge, shared) > alone + 4 * 4 * 64**2


def test_what_is_reserved_is_what_a_small_card_could_do(forge, shared, monkeypatch):
    """Where all that it has would not hold the graph beside the weights, blocks are computed again from the start."""
    whole, again = (reserved(forge, shared, recompute=one) for one in ("off", "on"))
    weights = sum(
        p.numel() * p.element_size() for p in shared.sd_model.forge_objects.unet.model.diffusion_model.parameters()
    )
    monkeypatch.setattr(forge.memory, "total", lambda device: weights + 2 * whole)
    assert reserved(forge, shared) == whole
    monkeypatch.setattr(forge.memory, "total", lambda device: weights + whole)  # a gradient may take 0.8 of it
    assert reserved(forge, shared) == again
    assert reserved(forge, shared, recompute="off") == whole


def test_weights_that_are_cast_at_each_call_are_reserved_for(forge, shared, unet):
    shared.sd_model.forge_objects.unet.online_lora = False
    plain = {one: reserved(forge, shared, recompute=one, layers="all", factor=1) for one in ("off", "on")}
    shared.sd_model.forge_objects.unet.online_lora = True
    cast = {one: reserved(forge, shared, recompute=one, layers="all", factor=1) for one in ("off", "on")}
    more = {one: (cast[one] - plain[one]) / 4 for one in cast}
    everything = sum(p.numel() for p in unet.parameters())
    behind = sum(p.numel() for p in unet.out.parameters())
    assert everything - 2 * behind - 40_000 < more["off"] < everything - behind
    assert more["on"] < more["off"] / 2


def test_after_a_refiner_s_switch_it_is_reserved_anew(forge, shared, unet, monkeypatch):
    prepared = []
    first = shared.sd_model
    second = SimpleNamespace(
        **{**vars(first), "forge_objects": SimpleNamespace(unet=stand_in.Patcher(stand_in.Model(unet)))}
    )

    def switch(denoiser, x=None, sigma=None):
        if shared.sd_model is second or denoiser.step < 1:
            return False
        shared.sd_model = second
        return True

    common = sys.modules["modules.sd_samplers_common"]
    monkeypatch.setattr(common, "apply_refiner", switch)
    monkeypatch.setattr(
        common, "sampling_prepare", lambda unet, x: prepared.append((unet, tuple(x.shape))), raising=False
    )
    original = second.forge_objects.unet
    _, job, sampling = drawn(
        forge,
        shared,
        ["a cat and a dog"],
        SMOOTH,
        prepare=lambda job: setattr(
            job.denoiser, "sampler", SimpleNamespace(sampler_extra_args={"cond": job.cond, "uncond": None})
        ),
    )
    assert sampling.stood_aside == ""
    ((patcher, shape),) = prepared
    assert shape == (1, 4, 8, 8)
    assert patcher is second.forge_objects.unet is not original
    assert original.extra_preserved_memory_during_sampling == 0
    assert (
        patcher.extra_preserved_memory_during_sampling
        == first.forge_objects.unet.extra_preserved_memory_during_sampling
    )
    shared.sd_model = first
    assert untouched(job)


@pytest.mark.parametrize("one_at_a_time", [False, True])
def test_a_control_net_gets_each_image_s_hint_and_is_left_as_it_was(forge, shared, gradients, one_at_a_time):
    hints = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    settings = Settings(**{**SMOOTH.as_dict(), "one_at_a_time": one_at_a_time})
    prompts = ["a cat and a dog"] * 2

    def run(hints, count, settings):
        shared.sd_model.forge_objects.unet.controlnet_linked_list = stand_in.ControlNet(hints)
        job = stand_in.Job(shared, prompts[:count], cfg=3)
        if settings:
            forge.SamplingPass(job, settings).attach(noise(count))
        return job.sample(noise(2)[-count:])

    batch = run(hints, 2, settings)
    alone = run(hints[1:], 1, settings)
    assert not torch.equal(batch[1:], run(hints, 2, None)[1:])
    torch.testing.assert_close(batch[1:], alone, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    "phase", ["reserve", "plan_image", "cross_attention_layers", "make_guide", "conditional_pass", "main_calls",
              "differentiable", "switch_refiner", "_denoise"],
)  # fmt: skip
@pytest.mark.parametrize("error", [RuntimeError("broken"), torch.cuda.OutOfMemoryError("broken"), KeyError("broken")])
def test_a_failure_costs_nothing(forge, shared, monkeypatch, phase, error):
    def fail(*args, **kwargs):
        raise error

    plain, _, _ = drawn(forge, shared, ["a cat and a dog"])
    owner = next(one for one in (forge.SamplingPass, forge.sampling, forge) if hasattr(one, phase))
    monkeypatch.setattr(owner, phase, fail)
    same, job, sampling = drawn(forge, shared, ["a cat and a dog"], SMOOTH)
    assert torch.equal(plain, same)
    assert ("out of memory" in sampling.stood_aside) == isinstance(error, torch.cuda.OutOfMemoryError)
    assert reasons.UNKNOWN in sampling.stood_aside or "out of memory" in sampling.stood_aside
    assert len(job.comments) == 1
    assert untouched(job)


def test_a_model_with_joint_attention_stands_aside_before_anything_is_attached(forge, shared):
    class FluxTransformer(torch.nn.Module):
        pass

    shared.sd_model.forge_objects.unet.model.diffusion_model = FluxTransformer()
    job = stand_in.Job(shared, ["a cat and a dog"])
    sampling = forge.SamplingPass(job, SMOOTH)
    sampling.attach(noise())
    assert "this model can't be guided" in sampling.stood_aside
    assert "Flux, SD 3, Chroma" in sampling.stood_aside
    assert job.sampler.func is euler
    assert shared.sd_model.forge_objects.unet.extra_preserved_memory_during_sampling == 0


def test_a_function_that_writes_into_out_has_its_gradient(forge, shared):
    """Sub-quadratic attention does so where memory is short."""
    sampling = forge.SamplingPass(stand_in.Job(shared, ["a cat and a dog"]), SMOOTH)
    with torch.inference_mode():
        start = torch.arange(4.0)
        with sampling.differentiable():
            leaf = start.clone().requires_grad_()
            x = leaf * 2
            torch.exp(x, out=x)
            (gradient,) = torch.autograd.grad(x.square().sum(), leaf)
    torch.testing.assert_close(gradient, 4 * (4 * torch.arange(4.0)).exp())


def test_patches_that_write_in_place_do_not_change_the_gradient(forge, shared, unet, gradients, monkeypatch):
    """FreeU writes into a slice of what the next block keeps."""

    def with_patch(write):
        block = unet.output_blocks[1]
        forward = block.forward

        def patched(h, *args, **kwargs):
            return forward(write(h), *args, **kwargs)

        monkeypatch.setattr(block, "forward", patched)
        try:
            drawn(forge, shared, ["a cat and a dog"], Settings(**{**SMOOTH.as_dict(), "layers": "up", "factor": 2}))
        finally:
            monkeypatch.delattr(block, "forward")

    def in_place(h):
        kept = torch.sigmoid(h)
        kept[:, :8] = kept[:, :8] * (kept.mean() + 1)
        kept.masked_fill_(kept > 0.9, 0.9)
        return kept

    def out_of_place(h):
        kept = torch.sigmoid(h)
        kept = torch.cat([kept[:, :8] * (kept.mean() + 1), kept[:, 8:]], 1)
        return kept.masked_fill(kept > 0.9, 0.9)

    with_patch(in_place)
    with_patch(out_of_place)
    torch.testing.assert_close(gradients[0][1], gradients[2][1], rtol=1e-4, atol=1e-7)


def test_a_forge_built_on_ldm_patched(forge, shared):
    """reForge and Forge Classic: A1111's text encoder, no predictor, no dtypes of their own."""
    older = shared.sd_model
    del older.text_processing_engine, older.forge_objects.unet.model.predictor
    model = type("BaseModel", (), {k: v for k, v in vars(stand_in.Model).items() if "dtype" not in k})
    older.forge_objects.unet.model.__class__ = model

    def masked(job):
        job.denoiser.init_latent = torch.full((1, 4, 8, 8), 0.3)
        job.denoiser.mask = torch.zeros(1, 1, 8, 8)
        job.denoiser.mask[..., :4] = 1
        job.denoiser.nmask = 1 - job.denoiser.mask
        torch.manual_seed(3)

    for prepare in (None, masked):
        plain, _, _ = drawn(forge, shared, ["a cat and a dog"], None, prepare)
        guided, job, sampling = drawn(forge, shared, ["a cat and a dog"], SMOOTH, prepare)
        assert sampling.stood_aside == ""
        assert not torch.equal(plain, guided)
        assert untouched(job)


def test_tokens_are_those_of_the_text_engine(forge, shared):
    assert [(p.position, p.text) for p in forge.tokenize("a cat")] == [(1, "a</w>"), (2, "cat</w>")]
    shared.sd_model = SimpleNamespace(forge_objects=None)
    with pytest.raises(ValueError, match="no text encoder"):
        forge.tokenize("a cat")


def test_anima_s_tokens_are_those_that_its_engine_gives_t5(forge, shared):
    class Engine:
        def tokenize_line(self, text):
            assert text == "a (cat:1.3)"
            return [SimpleNamespace(qwen_tokens=[7, 8], t5_tokens=[0, 1, 2, 3])]

        class t5_tokenizer:
            @staticmethod
            def convert_ids_to_tokens(ids):
                return [["\u2581", "a", "\u2581cat", "</s>"][one] for one in ids]

    shared.sd_model = SimpleNamespace(text_processing_engine_anima=Engine())
    assert [(p.position, p.text) for p in forge.tokenize("a (cat:1.3)")] == [(1, "a</w>"), (2, "cat</w>")]


@pytest.mark.parametrize("fits", FITS)
def test_where_memory_ends_less_is_tried_before_guidance_gives_up(forge, shared, unet, fits):
    prompts = ["a cat and a dog", "a dog and a cat"]
    plain, _, _ = drawn(forge, shared, prompts, cfg=3)
    whole, _, _ = drawn(forge, shared, prompts, SMOOTH, cfg=3)
    heal = tight(unet, FITS[fits], lambda: not torch.is_inference_mode_enabled())
    try:
        found, job, sampling = drawn(forge, shared, prompts, SMOOTH, cfg=3)
    finally:
        heal()
    assert untouched(job)
    if fits != "in no way":
        assert sampling.stood_aside == ""
        torch.testing.assert_close(found, whole, rtol=1e-3, atol=1e-3)
    else:
        assert sampling.stood_aside.startswith("at step 1 of 4: out of memory")
        assert torch.equal(found, plain)


def test_anima_s_rotation_passes_a_gradient_on_in_the_guided_pass_alone(monkeypatch):
    from lib_decouple.hosts import features

    def operator(q, k, rotation):
        raise RuntimeError("Trying to backward through comfy_kitchen::apply_rope_split_half")

    def plain(q, k, rotation):
        return q * rotation, k * rotation

    kitchen, eager = ModuleType("comfy_kitchen"), ModuleType("comfy_kitchen.backends.eager.rope")
    kitchen.apply_rope_split_half, eager.apply_rope_split_half = operator, plain
    user = ModuleType("a_module_that_imported_it_by_name")
    user.apply_rope_split_half = operator
    for module in (kitchen, eager, user):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    with features.with_backward(torch.nn.Linear(1, 1), torch.device("cpu")):
        assert kitchen.apply_rope_split_half is user.apply_rope_split_half is plain
    assert kitchen.apply_rope_split_half is user.apply_rope_split_half is operator


# ---------------------------------------------------------------- looks at the host's own passes


def all_at_once(job):
    pass


def one_by_one(job):
    job.denoiser.enough_memory = False


def longer_negative(job):
    with torch.inference_mode():
        job.negative = job.shared.sd_model.cond_stage_model.encode("nothing BREAK at all").expand(2, -1, -1)


@pytest.mark.parametrize("cfg", [1, 3])
@pytest.mark.parametrize("arrange", [all_at_once, one_by_one, longer_negative], ids=lambda one: one.__name__)
def test_what_moves_nothing_costs_no_pass_and_is_what_a_pass_would_have_shown(forge, shared, unet, arrange, cfg):
    prompts = ["a cat and a dog AND a fox", "a dog AND a cat"]
    settings = Settings(enabled=True, entities=("cat", "dog"), size=0.3, loss="com(form=negative)", steps=6)
    calls, seen = [], []
    counter = unet.register_forward_pre_hook(lambda module, args: calls.append(torch.is_grad_enabled()))

    def prepare(job):
        arrange(job)
        forward = job.denoiser.forward

        def spied(x, sigma, **given):
            seen.append((x.clone(), sigma.clone(), given, job.denoiser.step, len(calls)))
            return forward(x, sigma, **given)

        job.denoiser.forward = spied

    try:
        looked, job, sampling = drawn(forge, shared, prompts, settings, prepare, EVERYTHING, steps=8, cfg=cfg)
        ours = sum(calls)
        total = len(calls)
        plain, _, _ = drawn(forge, shared, prompts, settings, arrange, steps=8, cfg=cfg)
    finally:
        counter.remove()
    assert torch.equal(looked, plain)
    assert ours == 6
    assert len(calls) - total == total  # as many as without looking
    for k, trace in enumerate(sampling.traces):
        assert [record.step for record in trace.steps] == list(range(7))
        assert trace.looks == 0
        for record in trace.steps:
            x, sigma, given, step, _ = seen[record.step]
            job.denoiser.step = step
            with torch.no_grad(), sampling.differentiable():
                reader = sampling._prepare(job.denoiser, job.cond).guide.gradient.reader
                run = sampling.conditional_pass(job.denoiser, sigma, given)
                with reader.reading() as capture:
                    run(x[[k]].clone(), [k])
                (expected,) = reader.maps(capture, x.shape[-2:], [k])
            found = record.after if record.guided else record.before
            for name, values in asdict(measure(trace.entities, expected)).items():
                assert getattr(found, name) == pytest.approx(values, abs=1e-5), (record.step, name)


@pytest.mark.parametrize("sampler", ["sigmas", "timesteps"])
def test_what_is_told_is_read_off_the_hosts_own_pass_and_changes_nothing(forge, shared, unet, sampler):
    more = {"steps": 10, "cfg": 3, **({"func": stand_in.ddim} if sampler == "timesteps" else {})}
    prompts, calls = ["a cat and a dog", "a dog AND a cat"], []
    counter = unet.register_forward_pre_hook(lambda module, args: calls.append(len(args[0])))
    try:
        told, _, sampling = drawn(forge, shared, prompts, SMOOTH, **more)
        with_it = len(calls)
        silent, _, quiet = drawn(forge, shared, prompts, replace(SMOOTH, look="off"), **more)
    finally:
        counter.remove()
    assert torch.equal(told, silent)
    assert with_it == len(calls) - with_it
    assert quiet.teller.told == [None, None]
    found, uneven = sampling.teller.told
    assert uneven is None  # Forge leaves out the second part of its prompt, as the other has none
    assert list(found.scores) == ["cat", "dog"]
    assert 0 < max(found.scores.values()) < 1
    assert min(found.scores.values()) >= 0
    assert found.sigma <= 1.6


def few_rows(job):
    job.denoiser.enough_memory = False


@pytest.mark.parametrize("func", [euler, stand_in.ddim])
@pytest.mark.parametrize("arrange", [lambda job: None, few_rows], ids=["one call", "several"])
@pytest.mark.parametrize("cfg", [1, 3])
def test_a_late_gradient_is_that_of_the_hosts_own_pass_which_stays_as_it_is(forge, shared, unet, func, arrange, cfg):
    prompts, seen = ["a cat AND a dog", "a dog AND a cat"], []
    settings = replace(SMOOTH, entities=("cat", "dog"), steps=6, gradient="late")
    with_grad = []
    counter = unet.register_forward_pre_hook(lambda module, args: with_grad.append(torch.is_grad_enabled()))

    def prepare(job):
        arrange(job)
        spy(job, seen)

    try:
        _, job, sampling = drawn(forge, shared, prompts, settings, prepare, steps=8, cfg=cfg, func=func)
    finally:
        counter.remove()
    assert (sampling.stood_aside, sampling.exact_since) == ("", "")
    del job.denoiser.forward
    assert untouched(job, func)
    assert not any(with_grad)
    assert [trace.passes for trace in sampling.traces] == [0, 0]
    guide = sampling._prepare(job.denoiser, job.cond).guide
    whole, waiting = type(job.denoiser).forward, None
    for k, (came, sigma, given, step, made) in enumerate(seen):
        job.denoiser.step = step
        with torch.inference_mode():
            assert torch.equal(whole(job.denoiser, came.clone(), sigma, **given), made)
        job.denoiser.step = step
        if waiting is not None:
            moved = came - before_update(seen, k, func)
            for image in (0, 1):
                way, expected = moved[image].flatten(), -waiting[image].flatten()
                assert float(torch.cosine_similarity(way, expected, 0)) > 0.999
                share = float(way.norm() / (came - moved)[image].norm())
                assert share == pytest.approx(sampling.traces[image].steps[k - 1].update_norm, rel=2e-2)
        waiting = None
        if guide.schedule.guided(k, 8):
            with sampling.differentiable():
                run = sampling.conditional_pass(job.denoiser, sigma.clone(), given)
                waiting = guide.gradient(came.clone(), [0, 1], run).gradient.clone()


def before_update(seen, k, func):
    """Where the sampler went from its step before, by its own formula."""
    (x, sigma, _, _, made), (_, following, *_) = seen[k - 1], seen[k]
    if func is euler:
        return x + (x - made) / sigma[0] * (following[0] - sigma[0])
    now, then = stand_in.KEPT[int(sigma[0])], stand_in.KEPT[int(following[0])]
    return then.sqrt() * (x - (1 - now).sqrt() * made) / now.sqrt() + (1 - then).sqrt() * made


@pytest.mark.parametrize("error", [RuntimeError("broken"), torch.cuda.OutOfMemoryError("broken")])
def test_where_a_late_gradient_fails_the_host_keeps_its_pass_and_the_next_is_exact(forge, shared, unet, error):
    failed, seen = [], []

    def fail(*_):
        if torch.is_grad_enabled() and not failed:
            failed.append(1)
            raise error

    inner = unet.middle_block.register_forward_pre_hook(fail)
    settings = replace(SMOOTH, steps=6, gradient="late")
    try:
        _, job, sampling = drawn(
            forge, shared, ["a cat and a dog"], settings, lambda job: spy(job, seen), steps=8, cfg=3
        )
    finally:
        inner.remove()
    assert failed
    assert sampling.stood_aside == ""
    assert sampling.exact_since.startswith("the gradient is exact from step 2 of 8 on: ")
    assert [record.step for record in sampling.traces[0].steps if record.passes] == list(range(1, 6))
    for x, sigma, given, step, made in seen:
        job.denoiser.step = step
        with torch.inference_mode():
            assert torch.equal(type(job.denoiser).forward(job.denoiser, x.clone(), sigma, **given), made)


def test_a_late_gradient_under_a_mask_moves_inside_alone(forge, shared):
    def masked(job):
        job.denoiser.init_latent = torch.full((1, 4, 8, 8), 0.3)
        job.denoiser.mask = torch.zeros(1, 1, 8, 8)
        job.denoiser.mask[..., :4] = 1
        job.denoiser.nmask = 1 - job.denoiser.mask
        torch.manual_seed(3)

    settings = replace(SMOOTH, steps=6, gradient="late")
    plain, _, _ = drawn(forge, shared, ["a cat and a dog"], None, masked, steps=8)
    after_plain = torch.rand(1)
    found, _, sampling = drawn(forge, shared, ["a cat and a dog"], settings, masked, steps=8)
    assert torch.equal(after_plain, torch.rand(1))
    assert (sampling.stood_aside, sampling.exact_since) == ("", "")
    assert torch.equal(plain[..., :4], found[..., :4])
    assert not torch.equal(plain[..., 4:], found[..., 4:])


def test_a_wrapper_that_wants_no_gradients_and_catches_every_exception(monkeypatch, forge, shared, unet, gradients):
    """As extensions put them around Forge's UNet; some then move its weights."""
    expected, _, _ = drawn(forge, shared, ["a cat and a dog"], SMOOTH)
    kind, caught = type(unet), []
    forward = kind.forward

    def wrapped(self, *args, **kwargs):
        try:
            with torch.no_grad():
                return forward(self, *args, **kwargs)
        except Exception as error:
            caught.append(error)
            raise

    monkeypatch.setattr(kind, "forward", wrapped)
    image, job, sampling = drawn(forge, shared, ["a cat and a dog"], SMOOTH)
    assert not sampling.stood_aside
    assert caught == []
    assert torch.equal(image, expected)
    assert len(gradients) == 4
    assert all(torch.equal(a, b) for (_, a), (_, b) in zip(gradients[:2], gradients[2:]))
    assert untouched(job)
