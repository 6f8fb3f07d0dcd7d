"""What other extensions and flags do to a gradient in a WebUI, on the real UNet of ``ldm``."""

from __future__ import annotations

import importlib.util
import sys
import types
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from lib_decouple.core.gradient import LossGradient
from lib_decouple.settings import Settings

from . import host as stand_in

openaimodel = pytest.importorskip(
    "ldm.modules.diffusionmodules.openaimodel", reason="ldm's UNet is not installed (stable-diffusion-sdkit)"
)
attention = pytest.importorskip("ldm.modules.attention")
SETTINGS = Settings(enabled=True, entities=("cat", "dog"), size=0.3, loss="com(form=negative)")
PROMPT = "a cat and a dog"


@pytest.fixture(scope="module")
def unet() -> Any:
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
def shared(monkeypatch: pytest.MonkeyPatch, unet: Any) -> Any:
    return stand_in.install(monkeypatch, unet)


@pytest.fixture
def gradients(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """Of each guided step of a job."""
    found, whole = [], LossGradient.__call__

    def gradient(self: Any, latents: Tensor, images: Any, run: Any, *more: Any) -> Any:
        result = whole(self, latents, images, run, *more)
        found.append(result.gradient.flatten())
        return result

    monkeypatch.setattr(LossGradient, "__call__", gradient)
    return found


def drawn(shared: Any, guided: bool = True, **more: Any) -> tuple[Tensor, Any]:
    job = stand_in.Job(shared, [PROMPT])
    settings = replace(SETTINGS, **more)
    sampling = importlib.import_module("lib_decouple.hosts.a1111").SamplingPass(job, settings)
    if guided:
        sampling.attach()
    return job.sample(torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(5)) * 14), sampling


def angle(a: Tensor, b: Tensor) -> float:
    return float(functional.cosine_similarity(a, b, 0))


@pytest.fixture
def expected(shared: Any, gradients: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
    """The picture and the gradients with nobody else around."""
    image, _ = drawn(shared)
    assert len(gradients) == 2
    first = list(gradients)
    gradients.clear()
    return image, first


def controlled(unet: Any, moved: list[str]) -> Any:
    """A UNet's forward as ControlNet's extension writes it: the encoder without gradients, and weights that leave
    after an exception of its own kind."""
    from ldm.modules.diffusionmodules.util import timestep_embedding

    def forward(x: Tensor, timesteps: Tensor, context: Tensor) -> Tensor:
        try:
            with torch.no_grad():
                emb = unet.time_embed(timestep_embedding(timesteps, unet.model_channels))
                h, kept = x, []
                for module in unet.input_blocks:
                    h = module(h, emb, context)
                    kept.append(h)
                h = unet.middle_block(h, emb, context)
            for module in unet.output_blocks:
                h = module(torch.cat([h, kept.pop()], dim=1), emb, context)
            return unet.out(h)
        except Exception:
            moved.append("off the GPU")
            for parameter in unet.parameters():
                parameter.data = parameter.data.double()
            raise

    return forward


def test_an_encoder_without_gradients_adds_to_them_all_the_same(
    monkeypatch: pytest.MonkeyPatch, shared: Any, unet: Any, gradients: Any, expected: Any
) -> None:
    moved: list[str] = []
    monkeypatch.setattr(unet, "forward", controlled(unet, moved))
    image, sampling = drawn(shared)
    assert not sampling.stood_aside
    assert moved == []
    assert [angle(found, own) for found, own in zip(gradients, expected[1])] == pytest.approx([1, 1], abs=1e-6)
    torch.testing.assert_close(image, expected[0], rtol=0, atol=1e-4)


def sage(self: Any, x: Tensor, context: Any = None, mask: Any = None, **_: Any) -> Tensor:
    """``CrossAttention.forward`` with a compiled kernel, which writes where autograd does not look."""
    context = x if context is None else context
    parts = [getattr(self, f"to_{name}")(value) for name, value in (("q", x), ("k", context), ("v", context))]
    q, k, v = (torch.from_numpy(one.detach().numpy().copy()) for one in parts)
    split = (one.unflatten(-1, (self.heads, -1)).transpose(1, 2) for one in (q, k, v))
    return self.to_out(functional.scaled_dot_product_attention(*split).transpose(1, 2).flatten(2))


def with_torchs_attention(self: Any, x: Tensor, context: Any = None, mask: Any = None, **_: Any) -> Tensor:
    """What the host has in ``sd_hijack_optimizations``."""
    context = x if context is None else context
    parts = (self.to_q(x), self.to_k(context), self.to_v(context))
    split = (one.unflatten(-1, (self.heads, -1)).transpose(1, 2) for one in parts)
    return self.to_out(functional.scaled_dot_product_attention(*split).transpose(1, 2).flatten(2))


@pytest.fixture
def optimizations(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The host's module of attentions."""
    made = types.ModuleType("modules.sd_hijack_optimizations")
    made.scaled_dot_product_attention_forward = with_torchs_attention  # type: ignore[attr-defined]
    monkeypatch.setattr(sys.modules["modules"], "sd_hijack_optimizations", made, raising=False)
    monkeypatch.setitem(sys.modules, made.__name__, made)
    return made


def test_an_attention_without_a_backward_is_replaced_in_the_guided_pass_alone(
    monkeypatch: pytest.MonkeyPatch, shared: Any, optimizations: Any, gradients: Any, expected: Any
) -> None:
    monkeypatch.setattr(attention.CrossAttention, "forward", sage)
    image, sampling = drawn(shared)
    assert not sampling.stood_aside
    assert attention.CrossAttention.forward is sage
    assert [angle(found, own) for found, own in zip(gradients, expected[1])] == pytest.approx([1, 1], abs=1e-6)
    torch.testing.assert_close(image, expected[0], rtol=0, atol=1e-3)


def test_where_none_can_take_its_place_guidance_stands_aside_and_says_why(
    monkeypatch: pytest.MonkeyPatch, shared: Any, optimizations: Any, gradients: Any
) -> None:
    monkeypatch.setattr(attention.CrossAttention, "forward", sage)
    optimizations.scaled_dot_product_attention_forward = sage
    plain, _ = drawn(shared, guided=False)
    image, sampling = drawn(shared)
    torch.testing.assert_close(image, plain, rtol=0, atol=0)
    assert gradients == []
    assert "no gradient passes input_blocks.1.1.transformer_blocks.0.attn1" in sampling.stood_aside
    assert f"{__name__}.sage" in sampling.stood_aside
    assert "start the WebUI without --sage" in sampling.stood_aside
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in shared.sd_model.model.diffusion_model.modules())


def test_an_extension_is_named_by_its_folder(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch, shared: Any, optimizations: Any
) -> None:
    file = tmp_path / "extensions" / "sd-webui-fast-kernels" / "scripts" / "fast.py"
    file.parent.mkdir(parents=True)
    lines = [
        "def forward(self, x, context=None, mask=None):",
        "    q = self.to_q(x)",
        "    self.to_k(x if context is None else context)",
    ]
    file.write_text("\n".join([*lines, "    return self.to_out(q.detach())"]))
    spec = importlib.util.spec_from_file_location("fast.py", file)
    assert spec
    assert spec.loader
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    monkeypatch.setattr(attention.CrossAttention, "forward", loaded.forward)
    optimizations.scaled_dot_product_attention_forward = loaded.forward
    _, sampling = drawn(shared)
    assert "of the extension sd-webui-fast-kernels" in sampling.stood_aside


def test_weights_that_are_cast_for_a_call_alone_pass_it_on(shared: Any, unet: Any, gradients: Any) -> None:
    """8-bit storage with the host's ``manual_cast``: a module's weights are there for its call alone."""
    products = [one for one in unet.modules() if isinstance(one, (torch.nn.Linear, torch.nn.Conv2d))]
    before = [{name: value.clone() for name, value in one.named_parameters()} for one in products]

    def cast(module: torch.nn.Module) -> Any:
        forward = type(module).forward

        def at_each_call(x: Tensor) -> Tensor:
            module.to(torch.float32)
            result = forward(module, x)
            module.to(torch.float8_e4m3fn)
            return result

        return at_each_call

    try:
        for one in products:
            one.to(torch.float8_e4m3fn).float()
        expected, _ = drawn(shared)
        for one in products:
            one.to(torch.float8_e4m3fn)
            one.forward = cast(one)
        image, sampling = drawn(shared)
    finally:
        for one, values in zip(products, before):
            vars(one).pop("forward", None)
            one.float().load_state_dict(values)
    assert not sampling.stood_aside
    assert torch.equal(image, expected)
    assert len(gradients) == 4
    assert all(torch.equal(found, own) for found, own in zip(gradients[2:], gradients[:2]))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_under_the_host_s_autocast_the_gradient_keeps_its_direction(
    shared: Any, gradients: Any, expected: Any, dtype: torch.dtype
) -> None:
    with torch.autocast("cpu", dtype):
        _, sampling = drawn(shared)
    assert not sampling.stood_aside
    assert angle(gradients[0], expected[1][0]) > (0.995 if dtype == torch.float16 else 0.98)


def sent_where_they_are_needed(unet: Any) -> Any:
    """The host's ``--lowvram``: one block at a time is on the device, for which its dtype stands here, as a module
    refuses what is of another; gives what takes the hooks off."""
    blocks = [unet.time_embed, *unet.input_blocks, unet.middle_block, *unet.output_blocks, unet.out]
    here: list[torch.nn.Module] = []

    def send_me_to_gpu(module: torch.nn.Module, given: Any) -> None:
        if here != [module]:
            for other in here:
                other.double()
            here[:] = [module.float()]

    hooks = [block.register_forward_pre_hook(send_me_to_gpu) for block in blocks]
    for block in blocks:
        block.double()

    def off() -> None:
        for hook in hooks:
            hook.remove()
        for block in blocks:
            block.float()

    return off


@pytest.mark.parametrize("recompute", ["auto", "on"])
def test_blocks_that_are_sent_away_before_the_gradient_is_taken(
    shared: Any, unet: Any, gradients: Any, expected: Any, recompute: str
) -> None:
    off = sent_where_they_are_needed(unet)
    try:
        with pytest.raises(RuntimeError, match="should be the same"):
            unet.input_blocks[0][0](torch.zeros(1, 4, 8, 8))  # it is away, and no hook of its own brings it
        image, sampling = drawn(shared, recompute=recompute)
    finally:
        off()
    assert not sampling.stood_aside
    assert [angle(found, own) for found, own in zip(gradients, expected[1])] == pytest.approx([1, 1], abs=1e-6)
    torch.testing.assert_close(image, expected[0], rtol=0, atol=1e-4)


def test_where_nothing_may_be_computed_again_lowvram_is_named(shared: Any, unet: Any) -> None:
    plain, _ = drawn(shared, guided=False)
    off = sent_where_they_are_needed(unet)
    try:
        image, sampling = drawn(shared, recompute="off")
    finally:
        off()
    assert "--lowvram" in sampling.stood_aside
    assert "Save memory" in sampling.stood_aside
    assert torch.equal(image, plain)
