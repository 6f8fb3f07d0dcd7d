"""Maps read beside the attention equal the attention's own, and the hooks always come off."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from tiny import tiny_unet
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from toy import PlainAttention, Toy, contexts, noise

from lib_decouple.core import maps as core_maps
from lib_decouple.core.maps import (
    Capture,
    CrossAttentionLayer,
    Entity,
    Projections,
    captured,
    entity_maps,
    level_size,
    token_maps,
)


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


class TestTokenMaps:
    @pytest.mark.parametrize("heads", [1, 2, 4])
    def test_plain_module(self, heads: int) -> None:
        torch.manual_seed(0)
        attention = PlainAttention(8, 6, heads)
        hidden, context = 3 * randn(2, 35, 8), 3 * randn(2, 9, 6, seed=1)
        attention(hidden, context)
        explicit = attention.probs.mean(1).transpose(1, 2)
        assert explicit.std() > 0.05  # not uniform, or the comparison would show nothing
        torch.testing.assert_close(token_maps(attention, hidden, context), explicit, rtol=0, atol=1e-5)

    def test_selected_columns_are_those_of_the_full_softmax(self) -> None:
        attention = PlainAttention(8, 6, 2)
        hidden, context = 3 * randn(2, 35, 8), 3 * randn(2, 9, 6, seed=1)
        full = token_maps(attention, hidden, context)
        assert full.shape == (2, 9, 35)
        torch.testing.assert_close(full.sum(1), torch.ones(2, 35))
        for tokens in ([4], [0, 8], [7, 2, 5], [3, 3]):
            torch.testing.assert_close(token_maps(attention, hidden, context, tokens), full[:, tokens])

    def test_gradient_of_selected_columns_is_the_full_ones(self) -> None:
        attention = PlainAttention(8, 6, 2).double()
        hidden, context = randn(1, 6, 8).double().requires_grad_(), randn(1, 5, 6, seed=1).double()
        full = torch.autograd.grad(token_maps(attention, hidden, context)[:, [1, 3]].square().sum(), hidden)[0]
        few = torch.autograd.grad(token_maps(attention, hidden, context, [1, 3]).square().sum(), hidden)[0]
        torch.testing.assert_close(few, full)

    def test_scale_of_the_module_is_used_or_the_usual_one(self) -> None:
        attention = PlainAttention(8, 6, 2)
        hidden, context = 3 * randn(1, 10, 8), 3 * randn(1, 5, 6, seed=1)
        usual = token_maps(attention, hidden, context)
        del attention.scale
        torch.testing.assert_close(token_maps(attention, hidden, context), usual)
        attention.scale = 0.1
        attention(hidden, context)
        torch.testing.assert_close(token_maps(attention, hidden, context), attention.probs.mean(1).transpose(1, 2))

    @pytest.mark.parametrize(
        "options",
        [{}, {"upcast_attention": True}, {"scale_qk": False}, {"bias": True}, {"qk_norm": "layer_norm"}],
        ids=lambda o: next(iter(o), "default"),
    )
    def test_diffusers_attention(self, options: dict[str, Any]) -> None:
        from diffusers.models.attention_processor import Attention

        torch.manual_seed(0)
        attention = Attention(query_dim=16, cross_attention_dim=6, heads=4, dim_head=4, **options)
        hidden, context = 3 * randn(2, 35, 16), 3 * randn(2, 9, 6, seed=1)
        query, key = attention.to_q(hidden), attention.to_k(context)
        if attention.norm_q is not None:
            query = attention.norm_q(query.unflatten(-1, (4, 4))).flatten(-2)
            key = attention.norm_k(key.unflatten(-1, (4, 4))).flatten(-2)
        theirs = attention.get_attention_scores(attention.head_to_batch_dim(query), attention.head_to_batch_dim(key))
        theirs = theirs.unflatten(0, (2, 4)).mean(1).transpose(1, 2)
        torch.testing.assert_close(token_maps(attention, hidden, context), theirs, rtol=0, atol=1e-5)

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
    def test_half_precision_modules_give_float32(self, dtype: torch.dtype) -> None:
        """As exact as float32 is, given the module's own queries and keys."""
        attention = PlainAttention(8, 6, 2).to(dtype)
        hidden, context = 3 * randn(2, 35, 8).to(dtype), 3 * randn(2, 9, 6, seed=1).to(dtype)
        half = token_maps(attention, hidden, context, [1, 2])
        assert half.dtype == torch.float32
        query, key = (
            own.double().unflatten(-1, (2, 4)).transpose(1, 2)
            for own in (attention.to_q(hidden), attention.to_k(context))
        )
        exact = (query @ key.transpose(-1, -2) * attention.scale).softmax(-1).mean(1).transpose(1, 2)[:, [1, 2]]
        torch.testing.assert_close(half.double(), exact, rtol=0, atol=2e-6)
        rounded = (query @ key.transpose(-1, -2) * attention.scale).to(dtype).double().softmax(-1)
        assert (rounded.mean(1).transpose(1, 2)[:, [1, 2]] - exact).abs().max() > 2e-5  # what the bound would not pass

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
    def test_under_autocast_only_the_projections_are_rounded(self, dtype: torch.dtype) -> None:
        """Map and gradient from there on are those of the rounded queries and keys in float64."""
        attention = PlainAttention(8, 6, 2)
        hidden, context = 2 * randn(1, 35, 8), 2 * randn(1, 9, 6, seed=1)
        kept: list[Tensor] = []

        def keep(_: nn.Module, __: Any, output: Tensor) -> None:
            output.retain_grad()
            kept.append(output)

        for projection in (attention.to_q, attention.to_k):
            projection.register_forward_hook(keep)
        with torch.autocast("cpu", dtype):
            maps = token_maps(attention, hidden.requires_grad_(), context, [1, 2])
            with core_maps.no_autocast(maps.device):
                maps.square().sum().backward()
        assert [one.dtype for one in kept] == [dtype, dtype]
        query, key = (one.detach().double().unflatten(-1, (2, 4)).transpose(1, 2) for one in kept)
        query.requires_grad_()
        exact = ((query @ key.mT) / 2).softmax(-1).mean(1).mT[:, [1, 2]]
        assert (maps - exact).abs().max() < 1e-6
        (slope,) = torch.autograd.grad(exact.square().sum(), query)
        found = kept[0].grad.double().unflatten(-1, (2, 4)).transpose(1, 2)
        assert (found - slope).norm() < torch.finfo(dtype).eps * slope.norm()  # rounded once, on its way into `dtype`

    @pytest.mark.parametrize("allowed", ["high", "medium", "own switches"])
    def test_float32_products_are_whole_whatever_the_host_allows(self, allowed: str) -> None:
        """TF32's and bf16's are switched off for maps and loss, there and back, and for nothing else."""
        own = [getattr(one, "matmul", None) for one in (torch.backends.cuda, torch.backends.mkldnn)]
        own = [one for one in own if hasattr(one, "fp32_precision")]
        if allowed == "own switches" and not own:
            pytest.skip("this torch has none")

        def switches() -> list[str]:
            return [one.fp32_precision for one in own] or [torch.get_float32_matmul_precision()]

        class Products(TorchDispatchMode):
            def __init__(self) -> None:
                super().__init__()
                self.seen: list[tuple[Any, list[str]]] = []

            def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
                if func in (torch.ops.aten.bmm.default, torch.ops.aten.mm.default):
                    self.seen.append((len(args[0].shape), switches()))
                return func(*args, **(kwargs or {}))

        before, strict = [one.fp32_precision for one in own], ["ieee" if own else "highest"] * (len(own) or 1)
        at_first = torch.get_float32_matmul_precision()
        attention, context = PlainAttention(8, 6, 2), randn(1, 9, 6, seed=1)
        hidden = randn(1, 35, 8).requires_grad_()
        try:
            if allowed == "own switches":
                for one in own:
                    one.fp32_precision = "tf32"
            else:
                torch.set_float32_matmul_precision(allowed)
            lax = switches()
            with Products() as products:
                maps = token_maps(attention, hidden, context, [1, 2])
                maps.square().sum().backward()
            assert switches() == lax != strict
        finally:
            torch.set_float32_matmul_precision(at_first)
            for one, value in zip(own, before):
                one.fp32_precision = value
        batched = [seen for shape, seen in products.seen if shape == 3]
        assert batched == [strict] * 3  # the logits, and on the way back the queries' gradient and the keys'
        assert [seen for shape, seen in products.seen if shape == 2].count(lax) >= 3  # the projections' own

    def test_an_architecture_is_read_by_its_own_reader(self) -> None:
        """Other names and norms, as in Anima: q_norm(q_proj(x)), k_norm(k_proj(context)), heads counted elsewhere."""

        class Normed(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.q_proj, self.k_proj = nn.Linear(8, 12, bias=False), nn.Linear(6, 12, bias=False)
                self.q_norm, self.k_norm = nn.LayerNorm(4), nn.LayerNorm(4)
                self.n_heads = 3

            def forward(self, x: Tensor, context: Tensor) -> Tensor:
                q = self.q_norm(self.q_proj(x).unflatten(-1, (3, 4))).transpose(1, 2)
                k = self.k_norm(self.k_proj(context).unflatten(-1, (3, 4))).transpose(1, 2)
                self.probs = (q @ k.mT * 0.7).softmax(-1)
                return x

        def reader(module: Any) -> Projections:
            return Projections(module.q_proj, module.k_proj, module.n_heads, 0.7, module.q_norm, module.k_norm)

        module, hidden, context = Normed(), randn(2, 12, 8), randn(2, 5, 6, seed=1)
        layer = CrossAttentionLayer("own", module, 1, reader)
        with torch.no_grad(), captured([layer], [3, 1], stop=False) as capture:
            module(hidden, context)
            explicit = module.probs.mean(1).mT[:, [3, 1]]
            assert explicit.std() > 0.02
            torch.testing.assert_close(capture.maps["own"], explicit, rtol=0, atol=1e-6)
            torch.testing.assert_close(token_maps(module, hidden, context, [3, 1], reader), explicit, rtol=0, atol=1e-6)

    def test_large_logits_stay_finite(self) -> None:
        attention = PlainAttention(8, 6, 2)
        maps = token_maps(attention, 1e4 * randn(1, 10, 8), 1e4 * randn(1, 5, 6, seed=1), [1, 2])
        assert torch.isfinite(maps).all()

    @pytest.mark.parametrize("tokens", [[9], [-1], [0, 77]])
    def test_position_outside_the_context(self, tokens: list[int]) -> None:
        with pytest.raises(ValueError, match=r"tokens: .* outside a context of 9 tokens"):
            token_maps(PlainAttention(8, 6, 2), randn(2, 35, 8), randn(2, 9, 6), tokens)


class TestLevelSize:
    @pytest.mark.parametrize(
        ("size", "factor", "expected"),
        [
            ((64, 64), 4, (16, 16)),
            ((41, 65), 1, (41, 65)),
            ((41, 65), 2, (21, 33)),
            ((41, 65), 4, (11, 17)),
            ((41, 65), 8, (6, 9)),
            ((5, 1), 8, (1, 1)),
        ],
    )
    def test_every_halving_rounds_up(self, size: tuple[int, int], factor: int, expected: tuple[int, int]) -> None:
        assert level_size(*size, factor) == expected

    @pytest.mark.parametrize("factor", [0, -2, 3, 6])
    def test_not_a_power_of_two(self, factor: int) -> None:
        with pytest.raises(ValueError, match=f"factor: {factor} is not a power of two"):
            level_size(8, 8, factor)


class Storing:
    """diffusers' own plain attention processor, keeping the probabilities it used."""

    def __init__(self) -> None:
        self.probs = torch.empty(0)

    def __call__(self, attn: Any, hidden_states: Tensor, encoder_hidden_states: Tensor, **_: Any) -> Tensor:
        query, key = attn.to_q(hidden_states), attn.to_k(encoder_hidden_states)
        query, key, value = map(attn.head_to_batch_dim, (query, key, attn.to_v(encoder_hidden_states)))
        self.probs = attn.get_attention_scores(query, key, None)
        return attn.to_out[0](attn.batch_to_head_dim(self.probs @ value))


@pytest.mark.parametrize(("height", "width"), [(41, 65), (16, 24)])
@pytest.mark.parametrize("factor", [1, 2, 4])
def test_real_unet_of_any_size(height: int, width: int, factor: int) -> None:
    """Average over layers and heads of a real UNet, found by factor, square or not, odd or even."""
    from lib_decouple.hosts.diffusers import cross_attention_layers

    unet = tiny_unet(
        block_out_channels=(32, 32, 32),
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
    )
    everything = cross_attention_layers(unet)
    assert [layer.factor for layer in everything] == [1, 2, 4, 2, 2, 1, 1]
    layers = [layer for layer in everything if layer.factor == factor]
    stores = [Storing() for _ in layers]
    for layer, store in zip(layers, stores):
        layer.module.set_processor(store)
    tokens = [1, 5, 2]
    with torch.no_grad(), captured(layers, tokens, stop=False) as capture:
        unet(randn(2, 4, height, width), 300, randn(2, 9, 32, seed=1))
    found = capture.average(height, width, layers)
    h, w = math.ceil(height / factor), math.ceil(width / factor)
    assert found.shape == (2, 3, h, w)
    explicit = torch.stack([s.probs.unflatten(0, (2, 4)).mean(1) for s in stores]).mean(0)  # batch, pixels, tokens
    explicit = explicit[..., tokens].transpose(1, 2).unflatten(-1, (h, w))
    assert explicit.std() > 0.01
    torch.testing.assert_close(found, explicit, rtol=0, atol=1e-5)


class TestAverage:
    def test_one_level_is_a_plain_mean(self) -> None:
        model = Toy()
        layers = model.layers("coarse", "coarse2")
        with torch.no_grad(), captured(layers, [2, 4], stop=False) as capture:
            model(noise(3, 7, 10), contexts(3))
        explicit = (model.coarse.probs.mean(1) + model.coarse2.probs.mean(1)) / 2
        explicit = explicit[..., [2, 4]].transpose(1, 2).unflatten(-1, (4, 5))
        torch.testing.assert_close(capture.average(7, 10, layers), explicit, rtol=0, atol=1e-6)

    def test_mixed_levels_come_at_the_finest(self) -> None:
        model = Toy()
        layers = model.layers("fine", "coarse")
        with torch.no_grad(), captured(layers, [2], stop=False) as capture:
            model(noise(1, 8, 6), contexts(1))
        fine = model.fine.probs.mean(1)[..., 2].unflatten(-1, (8, 6))
        coarse = model.coarse.probs.mean(1)[..., 2].unflatten(-1, (4, 3))
        stretched = torch.nn.functional.interpolate(coarse[None], size=(8, 6), mode="bilinear")[0]
        torch.testing.assert_close(capture.average(8, 6, layers)[:, 0], (fine + stretched) / 2)

    def test_layer_without_a_map_is_named(self) -> None:
        layers = Toy().layers("fine", "coarse2")
        with pytest.raises(ValueError, match="layers: fine, coarse2 left no map"):
            Capture((1,)).average(8, 8, layers)

    def test_wrong_size_is_named(self) -> None:
        model = Toy()
        layers = model.layers("coarse")
        with torch.no_grad(), captured(layers, [2]) as capture:
            model(noise(1, 8, 8), contexts(1))
        with pytest.raises(ValueError, match="coarse has 16 pixels, not 5 x 4, for latents 9 x 8 at factor 2"):
            capture.average(9, 8, layers)


class TestCaptured:
    def test_the_pass_ends_at_the_last_layer(self) -> None:
        model = Toy()
        reached = []
        model.leave.register_forward_hook(lambda *_: reached.append("leave"))
        after = False
        with torch.no_grad(), captured(model.layers("fine", "coarse"), [1]) as capture:
            model(noise(1), contexts(1))
            after = True
        assert not after
        assert list(capture.maps) == ["fine", "coarse"]
        assert (model.fine.calls, model.coarse.calls, model.coarse2.calls, reached) == (1, 1, 0, [])

    def test_without_stop_the_pass_is_whole_and_its_result_untouched(self) -> None:
        model = Toy()
        with torch.no_grad():
            plain = model(noise(2), contexts(2))
            with captured(model.layers("fine", "coarse"), [1], stop=False) as whole:
                seen = model(noise(2), contexts(2))
            with captured(model.layers("fine", "coarse"), [1]) as cut:
                model(noise(2), contexts(2))
        assert torch.equal(plain, seen)
        for name in ("fine", "coarse"):
            assert torch.equal(whole.maps[name], cut.maps[name])

    def test_on_a_real_unet_nothing_runs_after_the_last_needed_layer(self) -> None:
        from lib_decouple.hosts.diffusers import cross_attention_layers

        unet = tiny_unet()
        layers = [layer for layer in cross_attention_layers(unet) if layer.factor == 2]
        called: list[str] = []
        for name in (
            "down_blocks.0",
            "down_blocks.1",
            "mid_block",
            "up_blocks.0.attentions.0",
            "up_blocks.0.resnets.1",
        ):
            unet.get_submodule(name).register_forward_hook(lambda *_, name=name: called.append(name))
        for name in ("up_blocks.0.attentions.1", "up_blocks.1", "conv_out"):
            unet.get_submodule(name).register_forward_hook(lambda *_, name=name: called.append("late " + name))
        with torch.no_grad(), captured(layers, [1]) as capture:
            unet(randn(1, 4, 8, 8), 300, randn(1, 9, 32))
        expected = ["down_blocks.0", "down_blocks.1", "mid_block", "up_blocks.0.attentions.0", "up_blocks.0.resnets.1"]
        assert called == expected
        assert len(capture.maps) == 4

    @pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, GeneratorExit, torch.OutOfMemoryError])
    def test_hooks_come_off_after_errors(self, error: type[BaseException], hooks_are_off: Any) -> None:
        model = Toy()
        with hooks_are_off(model), pytest.raises(error), captured(model.layers("fine", "coarse"), [1]):
            raise error("from the body")
        hook = model.down.register_forward_hook(lambda *_: (_ for _ in ()).throw(error("from the model")))
        with hooks_are_off(model), pytest.raises(error), captured(model.layers("fine", "coarse"), [1]):
            model(noise(1), contexts(1))
        hook.remove()

    def test_the_end_is_no_exception_to_those_who_catch_around_the_denoiser(self) -> None:
        """sd-webui-controlnet's wrapper moves its weights away on any Exception, before the gradient is taken."""
        model, moved_away = Toy(), []

        def wrapped(*args: Tensor) -> None:
            try:
                model(*args)
            except Exception:
                moved_away.append(True)
                raise

        with captured(model.layers("fine", "coarse"), [1]) as capture:
            wrapped(noise(1), contexts(1))
        assert list(capture.maps) == ["fine", "coarse"]
        assert moved_away == []

    def test_hooks_come_off_after_success_and_after_a_bad_position(self, hooks_are_off: Any) -> None:
        model = Toy()
        for stop in (True, False):
            with hooks_are_off(model), captured(model.layers("fine"), [1], stop=stop):
                model(noise(1), contexts(1))
        with (
            hooks_are_off(model),
            pytest.raises(ValueError, match="outside a context"),
            captured(model.layers("fine"), [70]),
        ):
            model(noise(1), contexts(1))

    @pytest.mark.parametrize(("x", "context"), [("hidden_states", "encoder_hidden_states"), ("x", "context")])
    @pytest.mark.parametrize("by_name", [True, False])
    def test_inputs_by_position_or_by_name(self, x: str, context: str, by_name: bool) -> None:
        class Named(PlainAttention):
            def forward(self, *args: Tensor, **kwargs: Tensor) -> Tensor:
                return super().forward(*args, *kwargs.values())

        attention = Named(8, 6, 2)
        hidden, text = randn(1, 12, 8), randn(1, 5, 6)
        with captured([CrossAttentionLayer("only", attention, 1)], None, stop=False) as capture:
            attention(**{x: hidden, context: text}) if by_name else attention(hidden, **{context: text})
        torch.testing.assert_close(capture.maps["only"], token_maps(attention, hidden, text))

    def test_a_layer_that_attends_to_nothing_is_told(self) -> None:
        class Idle(PlainAttention):
            def forward(self, x: Tensor) -> Tensor:
                return x

        layers = [CrossAttentionLayer("idle", Idle(8, 8, 2), 1)]
        with captured(layers, None) as capture:
            layers[0].module(torch.zeros(1, 4, 8))
        with pytest.raises(ValueError, match="idle left no map"):
            capture.average(2, 2, layers)

    def test_a_patch_that_calls_the_projections_itself_is_read(self) -> None:
        module, hidden, context = PlainAttention(8, 6, 2), torch.randn(1, 4, 8), contexts(1)
        with torch.no_grad(), captured([CrossAttentionLayer("patched", module, 1)], None, stop=False) as capture:
            module.to_q(hidden), module.to_k(context), module.to_v(context)
        torch.testing.assert_close(capture.maps["patched"], token_maps(module, hidden, context))

    def test_no_layers(self) -> None:
        with pytest.raises(ValueError, match="layers: none"), captured([], [1]):
            pass


def written_out_smoothing(image: Tensor) -> Tensor:
    """Attend-and-Excite's 3x3 kernel on one map, pixel by pixel, mirrored at the border."""
    h, w = image.shape
    weights = {(dy, dx): math.exp(-(dy * dy + dx * dx)) for dy in (-1, 0, 1) for dx in (-1, 0, 1)}
    total = sum(weights.values())

    def mirrored(i: int, n: int) -> int:
        return -i if i < 0 else 2 * (n - 1) - i if i >= n else i

    result = torch.zeros_like(image)
    for y in range(h):
        for x in range(w):
            for (dy, dx), weight in weights.items():
                result[y, x] += weight / total * image[mirrored(y + dy, h), mirrored(x + dx, w)]
    return result


class TestEntityMaps:
    GRIDS = torch.rand(1, 9, 4, 5, generator=torch.Generator().manual_seed(3))

    def test_tokens_and_their_combination(self) -> None:
        entities = [Entity("cat", (2,)), Entity("red porcupine", (4, 5, 7))]
        mean = entity_maps(self.GRIDS, None, entities)
        assert mean.shape == (2, 4, 5)
        assert torch.equal(mean[0], self.GRIDS[0, 2])
        torch.testing.assert_close(mean[1], (self.GRIDS[0, 4] + self.GRIDS[0, 5] + self.GRIDS[0, 7]) / 3)
        highest = entity_maps(self.GRIDS, None, entities, combine="max")
        assert torch.equal(highest[0], self.GRIDS[0, 2])
        assert torch.equal(highest[1], self.GRIDS[0, [4, 5, 7]].max(0).values)

    def test_columns_stand_for_their_tokens(self) -> None:
        entities = [Entity("dog", (7, 3)), Entity("cat", (5,))]
        few = entity_maps(self.GRIDS[:, [3, 5, 7]], [3, 5, 7], entities)
        torch.testing.assert_close(few, entity_maps(self.GRIDS, None, entities))

    def test_parts_of_an_and_prompt(self) -> None:
        grids = torch.cat([self.GRIDS, 1 - self.GRIDS])
        found = entity_maps(grids, None, [Entity("cat", (2,), part=1), Entity("dog", (2,), part=0)])
        assert torch.equal(found, torch.stack([grids[1, 2], grids[0, 2]]))

    @pytest.mark.parametrize("end", [None, 6])
    def test_attend_excite_by_hand(self, end: int | None) -> None:
        grids = self.GRIDS * 0.05
        entities = [Entity("cat", (2,)), Entity("dog", (4, 5))]
        found = entity_maps(grids, None, entities, "attend-excite", end=end)
        words = range(1, end or 8)  # without the start token, and without what stands from `end` on
        denominator = sum(torch.exp(100 * grids[0, t]) for t in words)
        share = {t: written_out_smoothing(torch.exp(100 * grids[0, t]) / denominator) for t in words}
        torch.testing.assert_close(found[0], share[2], rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(found[1], (share[4] + share[5]) / 2, rtol=1e-5, atol=1e-6)

    @pytest.mark.parametrize("size", [(1, 5), (4, 1), (1, 1), (2, 2)])
    def test_smoothing_keeps_the_mean_level_at_any_size(self, size: tuple[int, int]) -> None:
        torch.testing.assert_close(core_maps.smooth(torch.full((1, 2, *size), 0.3)), torch.full((1, 2, *size), 0.3))

    def test_smoothing_is_diffusers(self) -> None:
        module = pytest.importorskip(
            "diffusers.pipelines.deprecated.stable_diffusion_attend_and_excite."
            "pipeline_stable_diffusion_attend_and_excite",
            reason="this diffusers has no Attend-and-Excite pipeline",
        )
        padded = torch.nn.functional.pad(self.GRIDS[:, :1], (1, 1, 1, 1), mode="reflect")
        torch.testing.assert_close(core_maps.smooth(self.GRIDS[:, :1]), module.GaussianSmoothing()(padded))

    @pytest.mark.parametrize(
        ("entities", "options", "message"),
        [
            ([Entity("cat", (9,))], {}, r"entity 'cat': token \[9\]"),
            ([Entity("cat", (2,), part=1)], {}, "entity 'cat': .* prompt part 1"),
            ([Entity("cat", (0,))], {"treatment": "attend-excite"}, r"entity 'cat': token \[0\]"),
            ([Entity("cat", (6,))], {"treatment": "attend-excite", "end": 6}, r"entity 'cat': token \[6\]"),
            ([Entity("cat", (2,))], {"treatment": "sharp"}, "treatment: 'sharp' is not one of raw, attend-excite"),
            ([Entity("cat", (2,))], {"combine": "median"}, "combine: 'median' is not one of mean, max"),
        ],
    )
    def test_errors(self, entities: list[Entity], options: dict[str, Any], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            entity_maps(self.GRIDS, None, entities, **options)

    def test_attend_excite_needs_all_columns(self) -> None:
        with pytest.raises(ValueError, match="needs the columns of all tokens"):
            entity_maps(self.GRIDS[:, [2]], [2], [Entity("cat", (2,))], "attend-excite")

    @pytest.mark.parametrize("tokens", [(), (-1,), (3, -2)])
    def test_entity_without_a_place(self, tokens: tuple[int, ...]) -> None:
        with pytest.raises(ValueError, match="entity 'cat': tokens"):
            Entity("cat", tokens)


def test_lora_like_wrapper_is_respected() -> None:
    """Whatever the host put in the place of ``to_q`` and ``to_k`` is what the map is made of."""

    class Wrapped(nn.Module):
        def __init__(self, base: nn.Linear) -> None:
            super().__init__()
            self.base, self.extra = base, nn.Linear(base.in_features, base.out_features, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            return self.base(x) + self.extra(x)

    attention = PlainAttention(8, 6, 2)
    hidden, context = 3 * randn(1, 12, 8), 3 * randn(1, 5, 6, seed=1)
    before = token_maps(attention, hidden, context)
    attention.to_q, attention.to_k = Wrapped(attention.to_q), Wrapped(attention.to_k)
    attention(hidden, context)
    after = token_maps(attention, hidden, context)
    assert (after - before).abs().max() > 1e-3
    torch.testing.assert_close(after, attention.probs.mean(1).transpose(1, 2), rtol=0, atol=1e-6)
