"""Anima's layers, reader and tokens, and guidance of diffusers' own pipeline of it, on tiny random weights.

The reference is diffusers' CosmosTransformer3DModel with its attention and its sampler written out here.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lib_decouple.core.finite_differences import slopes
from lib_decouple.core.gradient import LearnedInRun, LossGradient
from lib_decouple.core.losses import WeightedLoss
from lib_decouple.core.maps import Entity, ImagePlan, MapReader, entity_maps, token_maps
from lib_decouple.core.memory import Thrift, kept_bytes
from lib_decouple.core.trace import ImageTrace
from lib_decouple.hosts import anima
from lib_decouple.hosts.anima import cross_attention_layers, pieces, q_proj_and_k_proj
from lib_decouple.hosts.base import choose_layers
from lib_decouple.hosts.family import profile_of
from lib_decouple.lab.study.bench.shapes import Alive, without_its_own_map
from lib_decouple.prompt.align import EntityNotFound, find
from lib_decouple.settings import Settings

pytest.importorskip("diffusers.modular_pipelines.anima", reason="this diffusers has no Anima")
from diffusers import AnimaTextConditioner, CosmosTransformer3DModel, FlowMatchEulerDiscreteScheduler
from diffusers.modular_pipelines.anima.modular_blocks_anima import AnimaCoreDenoiseStep

from lib_decouple.hosts.diffusers_anima import GuideStep, guided

PROMPT = "a cat and a dog"
TOKENS = ["▁", "a", "▁cat", "▁and", "▁", "a", "▁dog"]
CAT, DOG = 2, 6
HEADS, STEPS, SIZE = 2, 6, (10, 14)


def transformer(dtype: torch.dtype = torch.float32, layers: int = 3) -> Any:
    torch.manual_seed(0)
    made = CosmosTransformer3DModel(
        num_attention_heads=HEADS, attention_head_dim=12, num_layers=layers, text_embed_dim=16, adaln_lora_dim=8,
        max_size=(1, 16, 16), rope_scale=(1.0, 4.0, 4.0), concat_padding_mask=False, extra_pos_embed_type=None,
    )  # fmt: skip
    with torch.no_grad():
        made.proj_out.weight.mul_(0.3)  # keeps latents of usual size
    return made.to(dtype).eval()


class Words:
    """A tokenizer of T5's manner for the one prompt."""

    def __call__(self, text: str, add_special_tokens: bool) -> Any:
        assert (text, add_special_tokens) == (PROMPT, False)
        return type("Read", (), {"input_ids": list(range(len(TOKENS)))})

    def convert_ids_to_tokens(self, ids: Sequence[int]) -> list[str]:
        return [TOKENS[one] for one in ids]


def pipeline(**parts: Any) -> Any:
    torch.manual_seed(1)
    made = AnimaCoreDenoiseStep().init_pipeline()
    conditioner = AnimaTextConditioner(16, 16, 16, 1, HEADS, target_vocab_size=20, min_sequence_length=12).eval()
    made.update_components(
        transformer=parts.get("transformer") or transformer(),
        text_conditioner=conditioner,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
    )
    return made


def given(images: int = 1) -> dict[str, Any]:
    made = torch.Generator().manual_seed(2)
    ids = torch.tensor([[3, 4, 5, 6, 3, 4, 7, 1]])
    return {
        "latents": torch.randn(images, 16, 1, *SIZE, generator=made), "num_inference_steps": STEPS,
        "num_images_per_prompt": images, "height": SIZE[0] * 8, "width": SIZE[1] * 8,
        "qwen_prompt_embeds": torch.randn(1, 5, 16, generator=made), "qwen_attention_mask": torch.ones(1, 5),
        "t5_input_ids": ids, "t5_attention_mask": torch.ones_like(ids),
        "negative_qwen_prompt_embeds": torch.randn(1, 3, 16, generator=made),
        "negative_qwen_attention_mask": torch.ones(1, 3),
        "negative_t5_input_ids": ids[:, -1:], "negative_t5_attention_mask": torch.ones(1, 1),
    }  # fmt: skip


def settings(**more: Any) -> Settings:
    return Settings(enabled=True, loss="com(form=negative)", size=0.3, steps=4, **more)


def with_words(pipe: Any, step: GuideStep) -> Any:
    made = guided(pipe, step)
    made.t5_tokenizer = Words()
    return made


def explicit_maps(network: Any, run: Any) -> list[Tensor]:
    """Each block's cross-attention ``[batch, pixels, tokens]`` in a whole pass, by an attention written out here."""
    found: list[Tensor] = []

    class Explicit:
        def __call__(self, attn: Any, hidden: Tensor, encoder_hidden_states: Tensor, **_: Any) -> Tensor:
            def heads(x: Tensor) -> Tensor:
                return x.view(*x.shape[:2], HEADS, -1).transpose(1, 2)

            def normed(x: Tensor, norm: Any) -> Tensor:
                return x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt() * norm.weight

            q, k = (
                normed(heads(attn.to_q(hidden)), attn.norm_q),
                normed(heads(attn.to_k(encoder_hidden_states)), attn.norm_k),
            )
            weights = (q @ k.transpose(2, 3) / q.shape[-1] ** 0.5).softmax(-1)
            found.append(weights.mean(1))
            out = (weights @ heads(attn.to_v(encoder_hidden_states))).transpose(1, 2).flatten(2)
            return attn.to_out[0](out)

    before = [block.attn2.processor for block in network.transformer_blocks]
    for block in network.transformer_blocks:
        block.attn2.processor = Explicit()
    try:
        run()
    finally:
        for block, processor in zip(network.transformer_blocks, before):
            block.attn2.processor = processor
    return found


def reference(pipe: Any, size: float, guided_steps: int) -> Tensor:
    """The last latents of one image, guided by the middle block's maps, with Euler's steps written out."""
    network, start = pipe.transformer, given()
    texts = {}
    for sign in ("", "negative_"):
        texts[sign] = pipe.text_conditioner(
            source_hidden_states=start[f"{sign}qwen_prompt_embeds"],
            target_input_ids=start[f"{sign}t5_input_ids"],
            target_attention_mask=start[f"{sign}t5_attention_mask"],
            source_attention_mask=start[f"{sign}qwen_attention_mask"],
        )
    x = start["latents"]
    times = torch.linspace(1, 1 / STEPS, STEPS)  # the pipeline's own, before the scheduler's shift of 3
    times = [*(3 * times / (1 + 2 * times)).tolist(), 0.0]
    height, width = (side // 2 for side in SIZE)
    rows = (torch.arange(height) + 0.5) / max(height, width)
    columns = (torch.arange(width) + 0.5) / max(height, width)
    for step, (now, following) in enumerate(pairwise(times)):

        def velocity(x: Tensor, sign: str) -> Tensor:
            return network(x, torch.tensor([now]), texts[sign], return_dict=False)[0]  # noqa: B023

        if step < guided_steps:
            with torch.enable_grad():
                leaf = x.detach().clone().requires_grad_()
                maps = explicit_maps(network, lambda: velocity(leaf, ""))[1][0]  # noqa: B023
                centres = []
                for token in (CAT, DOG):
                    share = maps[:, token].view(height, width) + 1e-8
                    share = share / share.sum()
                    centres.append(torch.stack([(share.sum(1) * rows).sum(), (share.sum(0) * columns).sum()]))
                loss = -(centres[0] - centres[1]).norm()
                (gradient,) = torch.autograd.grad(loss, leaf)
            share = size * 2 * (guided_steps - step) / (guided_steps * (guided_steps + 1))
            x = x - gradient / gradient.norm() * share * x.norm()
        both = velocity(x, ""), velocity(x, "negative_")
        x = x + (following - now) * (both[1] + 4 * (both[0] - both[1]))
    return x


@torch.no_grad()
def test_the_pipeline_s_latents_are_those_of_an_independent_reference() -> None:
    step = GuideStep(settings(), ["cat", "dog"])
    pipe = pipeline()
    ours = with_words(pipe, step)(**given(), prompt=PROMPT, output="latents")
    plain = pipe(**given(), output="latents")
    assert step.stood_aside == ""
    assert (plain - reference(pipe, 0.3, 0)).abs().max() < 1e-4
    assert (ours - reference(pipe, 0.3, 4)).abs().max() < 1e-4
    assert (ours - plain).abs().max() > 0.05


def test_switched_off_it_is_the_pipeline_alone() -> None:
    pipe = pipeline()
    off = with_words(pipe, GuideStep(Settings(enabled=False)))(**given(2), prompt=PROMPT, output="latents")
    assert torch.equal(off, pipe(**given(2), output="latents"))


def test_each_image_is_guided_and_traced_and_entities_are_found() -> None:
    step = GuideStep(settings())
    pipe = pipeline()
    ours = with_words(pipe, step)(**given(2), prompt=PROMPT, output="latents")
    assert [trace.entities for trace in step.traces] == [("cat", "dog")] * 2
    assert all(isinstance(trace, ImageTrace) and len(trace.steps) >= 4 for trace in step.traces)
    assert (ours - pipe(**given(2), output="latents")).abs().amax((1, 2, 3, 4)).min() > 0.05


def test_a_failure_leaves_the_pipeline_s_own_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> Tensor:
        raise RuntimeError("no loss")

    monkeypatch.setattr(WeightedLoss, "__call__", fail)
    step, pipe = GuideStep(settings(), ["cat", "dog"]), pipeline()
    found = with_words(pipe, step)(**given(), prompt=PROMPT, output="latents")
    assert "at step 1" in step.stood_aside
    assert torch.equal(found, pipe(**given(), output="latents"))


def test_an_entity_that_is_not_there_is_refused() -> None:
    with pytest.raises(EntityNotFound, match="cow"):
        with_words(pipeline(), GuideStep(settings(), ["cow"]))(**given(), prompt=PROMPT, output="latents")


def test_a_pipeline_without_a_loop_is_refused() -> None:
    from diffusers.modular_pipelines.anima.encoders import AnimaTextEncoderStep

    with pytest.raises(ValueError, match="no denoising loop"):
        guided(AnimaTextEncoderStep().init_pipeline(), GuideStep(settings()))


# ---------------------------------------------------------------- layers, maps, gradient


def test_layers_are_the_blocks_in_order_and_their_thirds_have_names() -> None:
    layers = cross_attention_layers(transformer(layers=7))
    assert [layer.name for layer in layers] == [f"transformer_blocks.{i}.attn2" for i in range(7)]
    assert [layer.part for layer in layers] == ["down"] * 3 + ["middle"] * 2 + ["up"] * 2
    assert {layer.factor for layer in layers} == {2}
    assert profile_of(transformer()) is anima.PROFILE


class Neo(nn.Module):
    """Cross-attention as Forge Neo's Anima has it: q_proj, k_proj, a norm in each head, n_heads."""

    def __init__(self, theirs: Any) -> None:
        super().__init__()
        self.q_proj, self.k_proj, self.v_proj = theirs.to_q, theirs.to_k, theirs.to_v
        self.q_norm, self.k_norm, self.n_heads = theirs.norm_q, theirs.norm_k, theirs.heads


def test_neo_s_names_and_its_contexts_of_four_axes_are_read() -> None:
    network = transformer()
    hidden, context = torch.randn(2, 35, 24), torch.randn(2, 12, 16)
    theirs = network.transformer_blocks[0].attn2
    wanted = token_maps(theirs, hidden, context)
    assert torch.equal(token_maps(Neo(theirs), hidden, context[:, None], reader=q_proj_and_k_proj), wanted)
    blocks = nn.ModuleList(nn.ModuleDict({"cross_attn": Neo(theirs)}) for _ in range(3))
    for block in blocks:
        block.cross_attn = block["cross_attn"]
    neo = nn.Module()
    neo.blocks, neo.patch_spatial = blocks, 2  # type: ignore[assignment]
    assert [layer.name for layer in cross_attention_layers(neo)] == [f"blocks.{i}.cross_attn" for i in range(3)]


@pytest.mark.parametrize("network", [nn.Linear(1, 1), nn.Sequential(nn.Linear(1, 1))])
def test_other_networks_have_none(network: nn.Module) -> None:
    assert cross_attention_layers(network) == []


def bench(thrift: Thrift | None = None, loss: str = "com(form=negative)") -> tuple[LossGradient, Any, Tensor]:
    network = transformer(torch.float64)
    plan = ImagePlan((Entity("cat", (CAT,)), Entity("dog", (DOG,))), begin=0)
    layers = cross_attention_layers(network)
    reader = MapReader(choose_layers(layers, 0, "auto", anima.LEVEL), [plan])
    source = LossGradient(network, reader, WeightedLoss.parse(loss), LearnedInRun(thrift or Thrift()), layers=layers)
    made = torch.Generator().manual_seed(3)
    context = torch.randn(1, 12, 16, generator=made, dtype=torch.float64)
    latents = torch.randn(1, 16, 1, *SIZE, generator=made, dtype=torch.float64)

    def run(x: Tensor, images: Sequence[int]) -> None:
        network(x, torch.tensor([0.8], dtype=torch.float64), context.expand(len(images), -1, -1), return_dict=False)

    return source, run, latents


@pytest.mark.parametrize("loss", ["com(form=negative)", "kl", "iou + 0.5*intensity"])
def test_gradient_against_finite_differences(loss: str) -> None:
    source, run, latents = bench(loss=loss)
    found = source(latents, [0], run)
    for predicted, seen in slopes(lambda x: float(source.look(x, [0], run)[0]), latents, found.gradient):
        assert seen == pytest.approx(predicted, rel=2e-3, abs=1e-5 * float(found.gradient.norm()))


def test_blocks_are_computed_again_and_the_gradient_stays() -> None:
    (kept, run, latents), calls = bench(), []
    (frugal, again, _) = bench(Thrift(recompute=True))
    first = frugal.model.transformer_blocks[0]
    first.attn2.to_k.register_forward_hook(lambda *_: calls.append(1))
    assert torch.allclose(frugal(latents, [0], again).gradient, kept(latents, [0], run).gradient, atol=1e-12)
    assert len(calls) == 2


# ---------------------------------------------------------------- tokens


def test_words_of_t5_are_found_at_their_columns() -> None:
    own = pieces(
        ["▁two", "▁black", "-", "and", "-", "white", "▁", "z", "ebra", "s", ",", "▁a", "▁cat", "'", "s", "▁ball"]
    )
    assert find("zebras", own) == (7, 8, 9)
    assert find("cat", own) == (12,)
    assert find("black-and-white zebras", own) == (1, 2, 3, 4, 5, 7, 8, 9)
    assert find("#0", own) == (0,)
    with pytest.raises(EntityNotFound, match="zebra"):
        find("zebra dog", own)


def test_a_long_text_of_t5_is_one_chunk() -> None:
    found = pieces(["▁nice", ","] * 90 + ["▁cat"])
    assert found[-1].position == 180
    assert {piece.chunk for piece in found} == {0}


def test_the_first_word_belongs_to_attend_and_excite_s_maps() -> None:
    grids = torch.rand(1, 5, 4, 4)
    found = entity_maps(grids, None, [Entity("cat", (0,))], "attend-excite", end=3, begin=0)
    alone = entity_maps(grids[:, :3], None, [Entity("cat", (1,))], "attend-excite", end=3)
    assert found.shape == (1, 4, 4)
    assert not torch.allclose(found, alone)
    assert found.amax() <= 1


def kept_and_estimated(side: int, recompute: bool, part: str) -> tuple[int, int]:
    """Bytes kept for a gradient of one image on Anima's own sizes in bfloat16, counted on shapes."""
    kept: list[int] = []
    with torch.device("meta"):
        network = CosmosTransformer3DModel(
            num_attention_heads=16, attention_head_dim=128, num_layers=28, extra_pos_embed_type=None,
            rope_scale=(1.0, 4.0, 4.0), concat_padding_mask=False,
        ).to(torch.bfloat16)  # fmt: skip
        shapes = (1, 16, 1, side, side), (1,), (1, anima.COLUMNS, 1024)
        latents, time, text = (torch.empty(shape, dtype=torch.bfloat16) for shape in shapes)
    network = network.eval().to("meta")  # its rotation makes numbers on the CPU
    layers = cross_attention_layers(network)
    read = choose_layers(layers, 0, part, anima.LEVEL)
    alive = Alive(network)

    def loss(maps: Tensor) -> Tensor:
        kept.append(alive.bytes())
        return WeightedLoss.parse("com")(maps)

    plan = ImagePlan((Entity("cat", (CAT,)), Entity("dog", (DOG,))))
    source = LossGradient(network, MapReader(read, [plan]), loss, LearnedInRun(Thrift(recompute=recompute)))
    source.proved = True
    with alive, without_its_own_map():
        source.differentiate(latents, [0], lambda x, _: network(x, time, text))
    return kept[0], kept_bytes(layers, read, (side, side), 1, 2, recompute)


@pytest.mark.parametrize("part", ["auto", "all"])
@pytest.mark.parametrize(("recompute", "most"), [(False, 1.5), (True, 2.5)])
def test_what_is_reserved_is_what_a_gradient_keeps(part: str, recompute: bool, most: float) -> None:
    kept, estimated = kept_and_estimated(64, recompute, part)
    assert kept > 0.1e9
    assert kept <= estimated < most * kept
