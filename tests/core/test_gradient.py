"""How a gradient is had: the loss scale of half precision, and what is tried where memory ends."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny import tiny_unet
from torch import Tensor, nn
from toy import Runner, Toy, contexts, noise

from lib_decouple.core import memory
from lib_decouple.core.gradient import LearnedInRun, LossGradient, LossScale, NonFinite
from lib_decouple.core.losses import LOSSES
from lib_decouple.core.maps import Entity, ImagePlan, MapReader
from lib_decouple.core.memory import OUT_OF_MEMORY, Thrift, is_out_of_memory

PLAN = ImagePlan((Entity("cat", (2,)), Entity("dog", (4, 5))))


def gradient_of(model: Toy, images: int = 1, loss: Any = LOSSES["iou"], **given: Any) -> LossGradient:
    return LossGradient(model, MapReader(model.layers("coarse", "coarse2"), [PLAN] * images), loss, **given)


def cosine(a: Tensor, b: Tensor) -> float:
    return torch.nn.functional.cosine_similarity(a.double().flatten(), b.double().flatten(), 0).item()


class Counted(Runner):
    """A pass in the model's own precision."""

    def __call__(self, latents: Tensor, images: Any) -> None:
        super().__call__(latents.to(self.rows.dtype), images)


class TestLossScale:
    def half(self) -> tuple[Toy, Counted]:
        model = Toy(torch.float16)
        return model, Counted(model, contexts(1, dtype=torch.float16))

    @pytest.mark.parametrize("latents", [torch.float16, torch.float32], ids=str)
    def test_small_losses_keep_their_gradient(self, latents: torch.dtype) -> None:
        """As the mean over XL's layers, heads and pixels makes them small."""

        def faint(maps: Tensor) -> Tensor:
            return LOSSES["iou"](maps) * 1e-6

        model = Toy()
        exact = gradient_of(model, loss=faint)(noise(1), [0], Runner(model, contexts(1))).gradient
        model, run = self.half()
        found = {
            scaled: gradient_of(model, loss=faint, scaled=scaled)(noise(1, dtype=latents), [0], run).gradient
            for scaled in (None, False)
        }
        assert cosine(found[None], exact) > 0.999
        assert found[None].norm().item() == pytest.approx(exact.norm().item(), rel=0.02)
        assert cosine(found[False], exact) < 0.5

    def test_in_float32_there_is_none_and_it_would_change_no_bit(self) -> None:
        model = Toy()
        found = [
            gradient_of(model, scaled=scaled)(noise(1), [0], Runner(model, contexts(1))).gradient
            for scaled in (None, True, False)
        ]
        assert torch.equal(found[0], found[1])
        assert torch.equal(found[0], found[2])

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
    def test_is_used_in_fp16_alone(self, dtype: torch.dtype) -> None:
        model = Toy(dtype)
        source = gradient_of(model)
        _, scale = source.differentiate(noise(1), [0], Counted(model, contexts(1, dtype=dtype)))
        assert scale == 1
        model, run = self.half()
        assert gradient_of(model).differentiate(noise(1), [0], run)[1] == 2**12

    def test_autocast_counts_as_what_it_computes_in(self) -> None:
        model = Toy()
        for dtype, scale in ((torch.float16, 2.0**12), (torch.bfloat16, 1.0)):
            with torch.autocast("cpu", dtype):
                found = gradient_of(model).differentiate(noise(1), [0], Runner(model, contexts(1)))
            assert found[1] == scale
            assert found[0].gradient.dtype == torch.float32

    def test_an_overflow_lowers_the_scale_and_the_step_is_had_all_the_same(self) -> None:
        def steep(maps: Tensor) -> Tensor:
            return LOSSES["iou"](maps) * 2e4

        model, run = self.half()
        source = gradient_of(model, loss=steep)
        found = source(noise(1), [0], run).gradient
        model32 = Toy()
        exact = gradient_of(model32, loss=steep)(noise(1), [0], Runner(model32, contexts(1))).gradient
        assert torch.isfinite(found).all()
        assert cosine(found, exact) > 0.999
        first, learned = len(run.calls), source.learned.scale.exponent
        assert first > 1
        assert learned < 12
        source(noise(1), [0], run)
        assert len(run.calls) == first + 1  # what was learned holds

    def test_what_no_scale_cures_is_told_after_few_passes(self) -> None:
        def broken(maps: Tensor) -> Tensor:
            return (maps.sum((1, 2, 3)) * 0).sqrt()  # 0, with the gradient 0 * inf

        model, run = self.half()
        with pytest.raises(NonFinite, match="the gradient is not finite"):
            gradient_of(model, loss=broken)(noise(1), [0], run)
        assert len(run.calls) == 5

    def test_a_loss_that_is_not_finite_is_told_at_once(self) -> None:
        model, run = self.half()
        with pytest.raises(NonFinite, match="the loss is not finite"):
            gradient_of(model, loss=lambda maps: maps.sum((1, 2, 3)) / 0)(noise(1), [0], run)
        assert len(run.calls) == 1

    def test_by_hand(self) -> None:
        scale = LossScale(patience=3)
        assert scale.factor == 4096
        assert [scale.lower(k) and scale.exponent for k in range(4)] == [11, 9, 5, 0]
        assert not scale.lower(4)
        assert scale.factor == 1
        for _ in range(7):
            scale.keep()
        assert scale.exponent == 2  # doubled after the third and the sixth
        scale.lower(0)
        for _ in range(2):
            scale.keep()
        assert scale.exponent == 1  # a failure begins the row anew
        scale.exponent = 16
        for _ in range(9):
            scale.keep()
        assert scale.exponent == 16


def unet_gradient(
    unet: nn.Module, thrift: Thrift, layers: slice = slice(None), latents: Tensor | None = None
) -> Tensor:
    from lib_decouple.hosts.diffusers import cross_attention_layers

    found = [layer for layer in cross_attention_layers(unet) if layer.factor == 2][layers]
    source = LossGradient(unet, MapReader(found, [PLAN]), LOSSES["com"], LearnedInRun(thrift))
    context = torch.randn(1, 9, 32, generator=torch.Generator().manual_seed(1))
    x = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(2))
    return source(x, [0], lambda x, _: unet(x, 300, encoder_hidden_states=context)).gradient


class TestRecomputing:
    @pytest.mark.parametrize("layers", [slice(None), slice(0, 1), slice(-1, None)], ids=["all", "first", "last"])
    def test_not_a_bit_of_the_gradient_changes_and_nothing_is_left_behind(
        self, layers: slice, hooks_are_off: Any
    ) -> None:
        unet = tiny_unet()
        with hooks_are_off(unet):
            kept, twice = (unet_gradient(unet, Thrift(recompute=one), layers) for one in (False, True))
        assert kept.abs().max() > 0
        assert torch.equal(kept, twice)
        assert not any("forward" in module.__dict__ for module in unet.modules())

    def test_blocks_whose_maps_are_read_are_computed_again_too(self) -> None:
        unet = tiny_unet()
        runs: dict[str, int] = {}
        for name, module in unet.named_modules():
            if name.endswith("attn2"):
                module.register_forward_hook(lambda *_, name=name: runs.update({name: runs.get(name, 0) + 1}))
        unet_gradient(unet, Thrift(recompute=True))
        read = [name for name in runs if name.startswith(("down_blocks.1", "mid", "up_blocks.0"))]
        assert [runs[name] for name in read] == [2, 2, 2]  # and the last layer's block is left at its map

    def test_weights_that_a_hook_moves_away_are_brought_back(self) -> None:
        """A1111's --lowvram: a pre-hook on each block fetches its weights and sends the block before away."""
        unet = tiny_unet()
        expected = unet_gradient(unet, Thrift())
        here: list[nn.Module] = []

        def away(module: nn.Module) -> None:
            for parameter in module.parameters():
                parameter.data = parameter.data.double()  # float64 stands for the other device

        def fetch(module: nn.Module, _: Any) -> None:
            if here and here[0] is not module:
                away(here[0])
            for parameter in module.parameters():
                parameter.data = parameter.data.float()
            here[:] = [module]

        for block in (*unet.down_blocks, unet.mid_block, *unet.up_blocks):
            block.register_forward_pre_hook(fetch)
            away(block)
        with pytest.raises(RuntimeError, match="type"):
            unet_gradient(unet, Thrift(may_recompute=False))
        assert torch.equal(unet_gradient(unet, Thrift(recompute=True)), expected)


def swallowing(forward: Any) -> Any:
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        try:
            return forward(*args, **kwargs)
        except BaseException:
            return None

    return wrapped


def raising_its_own(forward: Any) -> Any:
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        try:
            return forward(*args, **kwargs)
        except BaseException as error:
            raise ValueError("something went wrong in my wrapper") from error

    return wrapped


def tidying_badly(forward: Any) -> Any:
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        made = None
        try:
            made = forward(*args, **kwargs)
        finally:
            made[0]

    return wrapped


class TestWhatCatchesTheEndOfAPass:
    """Wrappers that catch more than exceptions, around the denoiser and around a block behind whose start it ends."""

    @pytest.mark.parametrize("around", ["", "up_blocks.0"])
    @pytest.mark.parametrize("wrapper", [swallowing, raising_its_own, tidying_badly])
    @pytest.mark.parametrize("recompute", [False, True])
    def test_the_gradient_is_there_all_the_same(self, wrapper: Any, around: str, recompute: bool) -> None:
        expected = unet_gradient(tiny_unet(), Thrift())
        unet = tiny_unet()
        inside = unet.get_submodule(around)
        inside.forward = wrapper(inside.forward)
        assert torch.equal(unet_gradient(unet, Thrift(recompute=recompute)), expected)
        assert not any(one._forward_hooks for one in unet.modules())

    def test_what_fails_before_the_last_layer_is_told(self) -> None:
        unet = tiny_unet()
        unet.mid_block.register_forward_pre_hook(lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            unet_gradient(unet, Thrift())
        unet.forward = raising_its_own(unet.forward)
        with pytest.raises(ValueError, match="my wrapper"):
            unet_gradient(unet, Thrift())


WORDS = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB"),
    MemoryError(),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
    RuntimeError("cuDNN error: CUDNN_STATUS_NOT_SUPPORTED. This error may appear if you passed in a non-contiguous"),
    RuntimeError("GET was unable to find an engine to execute this computation"),
    RuntimeError("Not enough memory, use lower resolution (max approx. 640x640). Need: 2.0GB free, Have:1.1GB free"),
    RuntimeError("MPS backend out of memory (MPS allocated: 8.00 GB, other allocations: 1.00 GB)"),
    RuntimeError("Invalid buffer size: 12.00 GB"),
    RuntimeError("Could not allocate tensor with 52428800 bytes. There is not enough GPU video memory available!"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:114] data. DefaultCPUAllocator: can't allocate memory: you tried"),
    RuntimeError("Native API failed. Native API returns: 39 (UR_RESULT_ERROR_OUT_OF_DEVICE_MEMORY)"),
    RuntimeError("HIP out of memory. Tried to allocate 1.00 GiB"),
]
OTHERS = [RuntimeError("mat1 and mat2 shapes cannot be multiplied"), ValueError("out of memory"), KeyError("memory")]


class TestMemory:
    @pytest.mark.parametrize("error", WORDS, ids=lambda e: str(e)[:40])
    def test_words_of_every_backend(self, error: Exception) -> None:
        assert is_out_of_memory(error)

    @pytest.mark.parametrize("error", OTHERS, ids=lambda e: str(e)[:40])
    def test_other_failures_are_none(self, error: Exception) -> None:
        assert not is_out_of_memory(error)
        assert not isinstance(error, OUT_OF_MEMORY)

    def guarded(self, fits: Any, error: Exception, thrift: Thrift | None = None) -> tuple[LossGradient, Runner]:
        """A gradient of three images whose pass raises where ``fits(images, recomputed)`` is false."""
        model = Toy()
        run = Runner(model, contexts(3))
        source = gradient_of(model, 3, learned=LearnedInRun(thrift or Thrift()))

        def limited(latents: Tensor, images: Any) -> None:
            if not fits(len(images), source.learned.thrift.recompute):
                run.calls.append(list(images))
                raise error
            Runner.__call__(run, latents, images)

        source.run = limited  # type: ignore[attr-defined]
        return source, run

    @pytest.mark.parametrize("error", WORDS[:7], ids=lambda e: str(e)[:40])
    @pytest.mark.parametrize(
        ("fits", "calls"),
        [
            (lambda images, again: True, [[0, 1, 2]]),
            (lambda images, again: images == 1, [[0, 1, 2], [0], [1], [2]]),
            (lambda images, again: images == 1 and again, [[0, 1, 2], [0], [0], [1], [2]]),
        ],
        ids=["fits", "one at a time", "and recomputed"],
    )
    def test_the_same_step_is_tried_again_and_what_was_learned_holds(self, error: Any, fits: Any, calls: Any) -> None:
        source, run = self.guarded(fits, error)
        found = source(noise(3), [0, 1, 2], source.run)
        assert run.calls == calls
        whole = gradient_of(source.model, 3)(noise(3), [0, 1, 2], Runner(source.model, contexts(3)))
        torch.testing.assert_close(found.gradient, whole.gradient, rtol=1e-4, atol=1e-7)
        assert len(found.maps) == 3
        run.calls.clear()
        source(noise(3), [0, 1, 2], source.run)
        assert run.calls == ([[0, 1, 2]] if len(calls) == 1 else [[0], [1], [2]])

    @pytest.mark.parametrize(
        ("thrift", "calls"),
        [
            (Thrift(), [[0, 1, 2], [0], [0]]),
            (Thrift(may_recompute=False), [[0, 1, 2], [0]]),
            (Thrift(one_at_a_time=True), [[0], [0]]),
            (Thrift(one_at_a_time=True, recompute=True), [[0]]),
        ],
        ids=str,
    )
    def test_what_fits_in_no_way_is_raised(self, thrift: Thrift, calls: Any, hooks_are_off: Any) -> None:
        source, run = self.guarded(lambda *_: False, WORDS[0], thrift)
        with hooks_are_off(source.model), pytest.raises(torch.OutOfMemoryError):
            source(noise(3), [0, 1, 2], source.run)
        assert run.calls == calls
        assert all(parameter.requires_grad for parameter in source.model.parameters())

    @pytest.mark.parametrize("error", OTHERS, ids=lambda e: str(e)[:40])
    def test_other_failures_are_not_tried_again(self, error: Exception) -> None:
        source, run = self.guarded(lambda *_: False, error)
        with pytest.raises(type(error)):
            source(noise(3), [0, 1, 2], source.run)
        assert run.calls == [[0, 1, 2]]

    def test_a_look_is_tried_again_too(self) -> None:
        source, run = self.guarded(lambda images, _: images == 1, WORDS[0])
        losses, maps = source.look(noise(3), [0, 1, 2], source.run)
        assert run.calls == [[0, 1, 2], [0], [1], [2]]
        torch.testing.assert_close(losses, source(noise(3), [0, 1, 2], source.run).losses)
        assert len(maps) == 3

    def test_memory_that_ends_in_the_backward_counts(self) -> None:
        class Full(torch.autograd.Function):
            @staticmethod
            def forward(ctx: Any, x: Tensor) -> Tensor:
                ctx.rows = len(x)
                return x.clone()

            @staticmethod
            def backward(ctx: Any, *slopes: Tensor) -> Tensor:
                if ctx.rows > 1:
                    raise RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED")
                return slopes[0]

        model = Toy()
        run = Runner(model, contexts(3))
        found = gradient_of(model, 3)(noise(3), [0, 1, 2], lambda x, images: run(Full.apply(x), images))
        assert run.calls == [[0, 1, 2], [0], [1], [2]]
        assert found.gradient.shape == (3, 4, 8, 8)

    def test_foreseen_are_the_copies_of_weights_in_8_bits(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """They stay in the graph, whatever the host, until the gradient is taken."""

        def chosen(there: int) -> bool:
            source = gradient_of(model, layers=model.layers("coarse", "coarse2"))
            monkeypatch.setattr(memory, "free", lambda device: there)
            source.foresee(noise(1), [0])
            return source.learned.thrift.recompute

        model = Toy()
        layers = model.layers("coarse", "coarse2")
        activations = memory.kept_bytes(layers, layers[-1:], (8, 8), 1, 4)
        just_enough = int(activations / 0.8) + 1
        assert not chosen(just_enough)
        assert chosen(just_enough - 8)
        weights = sum(one.numel() for one in model.parameters())
        for one in model.parameters():
            one.data = one.data.to(torch.float8_e4m3fn)
        # Two bytes a number now, activations as well.
        activations //= 2
        just_enough = int(activations / 0.8) + 1
        assert chosen(just_enough)
        assert not chosen(just_enough + 2 * weights)

    @pytest.mark.parametrize(
        ("there", "one_at_a_time", "recompute"),
        [(None, False, False), (401, False, False), (399, True, False), (101, True, False), (99, True, True)],
    )
    def test_foreseen_by_hand(self, there: int | None, one_at_a_time: bool, recompute: bool) -> None:
        """Four images that need 80 bytes each; eight tenths of what is free may be taken."""
        thrift = Thrift()
        thrift.foresee(4, 320, there)
        assert (thrift.one_at_a_time, thrift.recompute) == (one_at_a_time, recompute)
        never = Thrift(may_recompute=False)
        never.foresee(1, 320, there)
        assert not never.recompute
