"""Capture and update on real `ldm` and k-diffusion code, of which A1111 is built, against written-out attention.

The sampler's own tensor is changed in place at the denoiser's door, as the A1111 adapter must do, so that the
sampler goes on with the guided latents. The reference shares no code with lib_decouple: explicit attention in
every CrossAttention, whole passes, one image at a time, updates of the scaled latents z, its own Euler and
DPM-Solver++(2M) loops.
"""

from __future__ import annotations

import importlib
import importlib.util
import math
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lib_decouple.core.gradient import LossGradient
from lib_decouple.core.guidance import Guide
from lib_decouple.core.losses import LOSSES
from lib_decouple.core.maps import CrossAttentionLayer, Entity, ImagePlan, MapReader, captured
from lib_decouple.core.observe import Observation
from lib_decouple.core.schedule import Schedule, StepRule

NODEPS = "pip install --no-deps -r requirements-test-nodeps.txt"
openaimodel = pytest.importorskip(
    "ldm.modules.diffusionmodules.openaimodel", reason=f"ldm's UNet is not installed: {NODEPS}"
)
attention = pytest.importorskip("ldm.modules.attention", reason=f"ldm's attention is not installed: {NODEPS}")

TOKENS = 7
PLACES = [[(2,), (4, 5)], [(1,), (3,), (6,)], [(5,), (2,)]]
PLANS = [ImagePlan(tuple(Entity(str(own), own) for own in image)) for image in PLACES]


@pytest.fixture(scope="module")
def sampling() -> Iterator[Any]:
    """`k_diffusion.sampling`, without the package's __init__, which imports far more than it needs."""
    for name in ("scipy", "torchdiffeq", "torchsde", "tqdm"):
        pytest.importorskip(name, reason=f"k-diffusion's samplers need {name}")
    found = importlib.util.find_spec("k_diffusion")
    if found is None or not found.submodule_search_locations:
        pytest.skip(f"k-diffusion is not installed: {NODEPS}")
    before = {name: module for name, module in sys.modules.items() if name.startswith(("k_diffusion", "torchvision"))}
    package = types.ModuleType("k_diffusion")
    package.__path__ = list(found.submodule_search_locations)
    sys.modules["k_diffusion"] = package
    if importlib.util.find_spec("torchvision") is None:  # `utils` imports it for pictures; the samplers do not use it
        for name in ("torchvision", "torchvision.transforms", "torchvision.transforms.functional"):
            sys.modules[name] = types.ModuleType(name)
        sys.modules["torchvision.transforms"].functional = sys.modules["torchvision.transforms.functional"]
    try:
        module = importlib.import_module("k_diffusion.sampling")
        assert Path(module.__file__).name == "sampling.py"
        yield module
    finally:
        for name in [name for name in sys.modules if name.startswith(("k_diffusion", "torchvision"))]:
            del sys.modules[name]
        sys.modules.update(before)


@pytest.fixture(scope="module")
def unet() -> nn.Module:
    """A tiny UNetModel in the v1-inference layout; what `ldm` initialises to zero is made random."""
    torch.manual_seed(0)
    model = openaimodel.UNetModel(
        image_size=8,
        in_channels=4,
        out_channels=4,
        model_channels=32,
        attention_resolutions=[1, 2],
        num_res_blocks=1,
        channel_mult=(1, 2),
        num_heads=4,
        use_spatial_transformer=True,
        transformer_depth=1,
        context_dim=16,
        use_checkpoint=False,
        legacy=False,
    )
    with torch.no_grad():
        for name, module in model.named_modules():
            if isinstance(module, nn.Conv2d) and not module.weight.any():
                nn.init.normal_(module.weight, std=0.05)
            if name.endswith("attn2"):
                module.to_q.weight.mul_(3)
                module.to_k.weight.mul_(3)
        model.out[2].weight.mul_(0.1)  # of usual size with guidance: large latents round coarsely
    return model.eval()


def walk(unet: Any) -> list[CrossAttentionLayer]:
    """Every attn2 in order of execution with its downsampling factor, block by block."""
    found, factor = [], 1
    blocks = [
        *((f"input_blocks.{i}", block) for i, block in enumerate(unet.input_blocks)),
        ("middle_block", unet.middle_block),
        *((f"output_blocks.{i}", block) for i, block in enumerate(unet.output_blocks)),
    ]
    for prefix, block in blocks:
        for i, part in enumerate(block):
            if isinstance(part, attention.SpatialTransformer):
                for k, inner in enumerate(part.transformer_blocks):
                    name = f"{prefix}.{i}.transformer_blocks.{k}.attn2"
                    found.append(CrossAttentionLayer(name, inner.attn2, factor))
            elif isinstance(part, openaimodel.Downsample):
                factor *= 2
            elif isinstance(part, openaimodel.Upsample):
                factor //= 2
    return found


def written_out(self: Any, x: Tensor, context: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
    """Attention head by head; ``self.softmax`` keeps ``[batch, pixels, tokens]``, averaged over heads."""
    text = x if context is None else context
    q, k, v = self.to_q(x), self.to_k(text), self.to_v(text)
    size = q.shape[-1] // self.heads
    weights, results = [], []
    for n in range(self.heads):
        part = slice(n * size, (n + 1) * size)
        weights.append(torch.softmax(q[..., part] @ k[..., part].mT / math.sqrt(size), dim=-1))
        results.append(weights[-1] @ v[..., part])
    self.softmax = sum(weights) / self.heads
    return self.to_out(torch.cat(results, dim=-1))


BETAS = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
ALPHA_BAR = torch.cumprod(1 - BETAS, 0)
TIMES = [999, 700, 400, 100]
SIGMAS = torch.cat([((1 - ALPHA_BAR[TIMES]) / ALPHA_BAR[TIMES]).sqrt().float(), torch.zeros(1)])
SCALE, GUIDED = 5.0, 3


def texts() -> tuple[Tensor, Tensor]:
    """Conditional rows of three images, and the unconditional row."""
    rows = torch.randn(4, TOKENS, 16, generator=torch.Generator().manual_seed(1))
    return rows[:3], rows[3:]


def noise(batch: int, size: tuple[int, int]) -> Tensor:
    return torch.randn(batch, 4, *size, generator=torch.Generator().manual_seed(2)) * SIGMAS[0]


def predicted(unet: nn.Module, z: Tensor, time: int, cond: Tensor, uncond: Tensor) -> Tensor:
    """Noise prediction with classifier-free guidance, at scaled latents."""
    rows = torch.cat([cond, uncond.expand(len(cond), -1, -1)])
    both = unet(torch.cat([z, z]), torch.full((2 * len(z),), time), rows)
    wanted, plain = both.chunk(2)
    return plain + SCALE * (wanted - plain)


class Denoiser:
    """What a k-diffusion sampler calls; guides the sampler's own x at the door."""

    def __init__(self, unet: nn.Module, guide: Guide, batch: int) -> None:
        self.unet, self.guide, self.step = unet, guide, 0
        self.seen: list[Observation] = []
        self.cond, self.uncond = texts()
        self.cond = self.cond[:batch]

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        level, time = sigma[0], TIMES[self.step]
        shrink = (1 + level**2) ** -0.5

        def run(latents: Tensor, images: Any) -> None:
            self.unet(latents * shrink, torch.full((len(latents),), time), self.cond[list(images)])

        moved, seen = self.guide.step(x, self.step, len(TIMES), run, level)
        self.seen += seen
        x.copy_(moved)
        self.step += 1
        return x - level * predicted(self.unet, x * shrink, time, self.cond, self.uncond)


def share(m: Tensor) -> Tensor:
    return m / m.sum()


def over_pairs(pair: Any) -> Any:
    return lambda maps: torch.stack([pair(a, b) for k, b in enumerate(maps) for a in maps[:k]]).mean()


def ref_iou(a: Tensor, b: Tensor) -> Tensor:
    return torch.minimum(share(a), share(b)).sum() / 2


def places(m: Tensor) -> tuple[Tensor, Tensor]:
    h, w = m.shape
    y, x = torch.meshgrid(torch.arange(h) + 0.5, torch.arange(w) + 0.5, indexing="ij")
    return y / max(h, w), x / max(h, w)


def ref_com(a: Tensor, b: Tensor) -> Tensor:
    away = [((share(a) - share(b)) * axis).sum() for axis in places(a)]
    return 1 - torch.stack(away).norm() / math.sqrt(2)


def ref_kl(a: Tensor, b: Tensor) -> Tensor:
    return torch.exp(-((share(a) - share(b)) * (share(a) / share(b)).log()).sum() / 2)


def ref_cc(maps: list[Tensor]) -> Tensor:
    return 1 - torch.stack([share(m) for m in maps]).amax(0).sum() / len(maps)


def ref_intensity(maps: list[Tensor]) -> Tensor:
    return 1 - torch.stack([m.max() for m in maps]).min()


def ref_spread(maps: list[Tensor]) -> Tensor:
    found = [sum((share(m) * axis**2).sum() - (share(m) * axis).sum() ** 2 for axis in places(m)) for m in maps]
    return torch.stack(found).mean()


REFERENCE = {
    **{name: over_pairs(pair) for name, pair in (("iou", ref_iou), ("com", ref_com), ("kl", ref_kl))},
    **{"cc": ref_cc, "intensity": ref_intensity, "spread": ref_spread},
}


def ref_update(unet: Any, z: Tensor, i: int, n: int, text: Tensor, loss: str, rule: StepRule) -> Tensor:
    leaf = z.clone().requires_grad_()
    with torch.enable_grad():
        unet(leaf, torch.tensor([TIMES[i]]), text)
        deep = [unet.input_blocks[3], unet.middle_block, unet.output_blocks[0], unet.output_blocks[1]]
        seen = [block[1].transformer_blocks[0].attn2.softmax for block in deep]
        h, w = (-(-side // 2) for side in z.shape[-2:])
        grid = (sum(seen) / len(seen))[0].T.reshape(TOKENS, h, w)
        maps = [grid[list(own)].mean(0) for own in PLACES[n]]
        (gradient,) = torch.autograd.grad(REFERENCE[loss](maps), leaf)
    if rule.name == "attend-excite":
        return z - rule.size * math.sqrt(1 - 0.5 * i / 3) * gradient
    return z - rule.size * (3, 2, 1)[i] / 6 * z.norm() * gradient / gradient.norm()


def reference(unet: Any, batch: int, size: tuple[int, int], loss: str, sampler: str, rule: StepRule) -> list[Tensor]:
    """x after each guidance, and at the end."""
    cond, uncond = texts()
    cond, x, record, earlier = cond[:batch], noise(batch, size), [], None
    for i, time in enumerate(TIMES):
        s, after = SIGMAS[i].item(), SIGMAS[i + 1].item()
        z = x / math.sqrt(1 + s * s)
        if i < GUIDED:
            z = torch.cat([ref_update(unet, z[n : n + 1], i, n, cond[n : n + 1], loss, rule) for n in range(batch)])
        x = z * math.sqrt(1 + s * s)
        record.append(x)
        noise_part = predicted(unet, z, time, cond, uncond)
        clean = x - s * noise_part
        if sampler == "sample_euler" or after == 0:
            x = clean + after * noise_part
        else:
            step = math.log(s / after)
            guess = clean
            if earlier is not None:
                ratio = step / math.log(SIGMAS[i - 1].item() / s)
                guess = clean + (clean - earlier) * ratio / 2
            x = x * after / s + (1 - math.exp(-step)) * guess
        earlier = clean
    return [*record, x]


@pytest.mark.parametrize("size", [(8, 8), (6, 10)], ids=["square", "wide"])
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("sampler", ["sample_euler", "sample_dpmpp_2m"])
@pytest.mark.parametrize(
    ("loss", "rule"),
    [
        ("iou", StepRule("relative", 0.2)),
        ("com", StepRule("relative", 0.05)),
        ("kl", StepRule("attend-excite", 4.0)),
        ("cc", StepRule("relative", 0.1)),
        ("intensity", StepRule("relative", 0.1)),
        ("spread", StepRule("relative", 0.1)),
    ],
    ids=["iou", "com", "kl-attend-excite", "cc", "intensity", "spread"],
)
def test_samplers_go_on_with_the_guided_latents(
    unet: Any,
    sampling: Any,
    monkeypatch: Any,
    hooks_are_off: Any,
    loss: str,
    rule: StepRule,
    sampler: str,
    batch: int,
    size: tuple[int, int],
) -> None:
    layers = [layer for layer in walk(unet) if layer.factor == 2]
    gradient = LossGradient(unet, MapReader(layers, PLANS[:batch]), LOSSES[loss])
    denoiser = Denoiser(unet, Guide(gradient, Schedule(GUIDED), rule), batch)
    ours: list[Tensor] = []
    with hooks_are_off(unet):
        end = getattr(sampling, sampler)(
            denoiser,
            noise(batch, size),
            SIGMAS,
            callback=lambda seen: ours.append(seen["x"].clone()),
            disable=True,
        )
    monkeypatch.setattr(attention.CrossAttention, "forward", written_out)
    with torch.no_grad():
        theirs = reference(unet, batch, size, loss, sampler, rule)
    for step, (a, b) in enumerate(zip([*ours, end], theirs, strict=True)):
        assert (a - b).abs().max() < 1e-4, f"latents {step}"
    assert min(one.update for one in denoiser.seen) > 1e-4
    assert sorted(one.image for one in denoiser.seen) == sorted(list(range(batch)) * GUIDED)
    assert all(parameter.requires_grad for parameter in unet.parameters())


def test_layers_in_order_of_execution(unet: Any) -> None:
    layers = walk(unet)
    assert [(layer.name.rsplit(".", 4)[0], layer.factor) for layer in layers] == [
        ("input_blocks.1", 1),
        ("input_blocks.3", 2),
        ("middle_block", 2),
        ("output_blocks.0", 2),
        ("output_blocks.1", 2),
        ("output_blocks.2", 1),
        ("output_blocks.3", 1),
    ]
    ran: list[str] = []
    handles = [layer.module.register_forward_pre_hook(lambda *_, name=layer.name: ran.append(name)) for layer in layers]
    with torch.no_grad():
        unet(noise(1, (8, 8)), torch.tensor([500]), texts()[0][:1])
    for handle in handles:
        handle.remove()
    assert ran == [layer.name for layer in layers]


@pytest.mark.parametrize("factor", [1, 2])
@pytest.mark.parametrize("size", [(8, 8), (6, 10)])
def test_maps_are_ldms_own_softmax(unet: Any, monkeypatch: Any, factor: int, size: tuple[int, int]) -> None:
    layers = [layer for layer in walk(unet) if layer.factor == factor]
    latents, time = noise(2, size) / SIGMAS[0], torch.tensor([500, 500])
    late: list[str] = []
    handle = unet.out.register_forward_hook(lambda *_: late.append("out"))
    with torch.no_grad():
        with captured(layers, [2, 5]) as capture:
            unet(latents, time, texts()[0][:2])
        handle.remove()
        assert late == []
        monkeypatch.setattr(attention.CrossAttention, "forward", written_out)
        unet(latents, time, texts()[0][:2])
    explicit = torch.stack([layer.module.softmax for layer in layers]).mean(0)[..., [2, 5]].transpose(1, 2)
    explicit = explicit.unflatten(-1, (size[0] // factor, size[1] // factor))
    assert explicit.std() > 0.01
    torch.testing.assert_close(capture.average(*size, layers), explicit, rtol=0, atol=1e-5)
