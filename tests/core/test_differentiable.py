"""What cuts a gradient in silence is found, and what can be kept from cutting is."""

from __future__ import annotations

import contextlib
import gc
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import CONTEXT, tiny_unet
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from lib_decouple.core.differentiable import GradientCut, GradientsOn, Proof, without_cudnn_attention
from lib_decouple.core.finite_differences import LENGTHS, MISFIT, misfit, slopes, slopes_of
from lib_decouple.core.gradient import LearnedInRun, LossGradient
from lib_decouple.core.losses import WeightedLoss
from lib_decouple.core.maps import Entity, ImagePlan, MapReader
from lib_decouple.core.memory import Thrift
from lib_decouple.hosts.diffusers import cross_attention_layers

PLAN = ImagePlan((Entity("cat", (2,)), Entity("dog", (5,))), end=7)


class Bench:
    """A tiny UNet, what it is run with, and its gradient."""

    def __init__(self, recompute: bool = False) -> None:
        made = torch.Generator().manual_seed(4)
        self.unet: Any = tiny_unet()
        self.latents, self.context = torch.randn(1, 4, 8, 8, generator=made), torch.randn(1, 9, CONTEXT, generator=made)
        reader = MapReader(cross_attention_layers(self.unet), [PLAN])
        self.gradient = LossGradient(
            self.unet, reader, WeightedLoss.parse("com"), LearnedInRun(Thrift(recompute=recompute))
        )
        self.attentions = {
            name: module for name, module in self.unet.named_modules() if name.endswith(("attn1", "attn2"))
        }

    def run(self, x: Tensor, images: Any = (0,)) -> object:
        return self.unet(x, torch.tensor(500), encoder_hidden_states=self.context, return_dict=False)

    def take(self) -> Tensor:
        return self.gradient(self.latents, [0], self.run).gradient.flatten()

    def loss(self, x: Tensor) -> float:
        return float(self.gradient.look(x, [0], self.run)[0])


@pytest.fixture(params=[False, True], ids=["keeping", "recomputing"])
def bench(request: Any) -> Bench:
    return Bench(request.param)


def has_its_switch() -> bool:
    return hasattr(torch.backends.cuda, "enable_cudnn_sdp")


class Kernels(TorchFunctionMode):
    """Notes at each attention of torch's whether cuDNN's kernel may be taken."""

    def __init__(self) -> None:
        super().__init__()
        self.allowed: list[bool] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is functional.scaled_dot_product_attention:
            self.allowed.append(torch.backends.cuda.cudnn_sdp_enabled())
        return func(*args, **(kwargs or {}))


@pytest.mark.skipif(not has_its_switch(), reason="this torch has no switch for cuDNN's attention")
@pytest.mark.parametrize("host", ["nothing", "allows it", "forbids it", "chooses at each call", "allows it alone"])
def test_cudnns_attention_is_out_of_a_gradients_way_and_as_the_host_had_it_after(bench: Bench, host: str) -> None:
    """Forge Neo chooses kernels around each attention on Windows."""
    kernels, seen = torch.backends.cuda, Kernels()
    all_of = ("cudnn", "flash", "mem_efficient", "math")

    def states() -> list[bool]:
        return [getattr(kernels, f"{one}_sdp_enabled")() for one in all_of]

    class Chosen(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if func is functional.scaled_dot_product_attention:
                kernels.enable_cudnn_sdp(True)
            return func(*args, **(kwargs or {}))

    def run(x: Tensor, images: Any) -> object:
        with Chosen() if host == "chooses at each call" else contextlib.nullcontext():
            return bench.run(x)

    before = states()
    if host in ("allows it", "forbids it"):
        kernels.enable_cudnn_sdp(host == "allows it")
    try:
        if host == "allows it alone":
            for one in all_of[1:]:
                getattr(kernels, f"enable_{one}_sdp")(False)
            with without_cudnn_attention():
                assert kernels.cudnn_sdp_enabled()
            return
        expected = [True, *before[1:]] if host == "chooses at each call" else states()
        with seen:
            bench.gradient(bench.latents, [0], run)
        assert seen.allowed
        assert not any(seen.allowed)
        assert states() == expected
    finally:
        for one, state in zip(all_of, before):
            getattr(kernels, f"enable_{one}_sdp")(state)


@pytest.mark.skipif(not has_its_switch(), reason="this torch has no switch for cuDNN's attention")
def test_the_hosts_own_pass_keeps_its_kernels() -> None:
    seen = Kernels()
    one = torch.randn(1, 1, 16, 8)
    with seen, GradientsOn(any_kernel=True):
        functional.scaled_dot_product_attention(one, one, one)
    assert seen.allowed == [torch.backends.cuda.cudnn_sdp_enabled()]


@pytest.fixture
def whole() -> Tensor:
    return Bench().take()


def angle(a: Tensor, b: Tensor) -> float:
    return float(functional.cosine_similarity(a, b, 0))


def kernel(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention as a compiled kernel gives it: written to memory that autograd knows nothing of."""
    parts = (torch.from_numpy(one.detach().numpy().copy()) for one in (q, k, v))
    return functional.scaled_dot_product_attention(*parts)


class Processor:
    """diffusers' door for another attention, here with a function of queries, keys and values."""

    def __init__(self, attend: Any) -> None:
        self.attend = attend

    def __call__(self, attn: Any, hidden_states: Tensor, encoder_hidden_states: Any = None, **_: Any) -> Tensor:
        context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        q, k, v = attn.to_q(hidden_states), attn.to_k(context), attn.to_v(context)
        split = [one.unflatten(-1, (attn.heads, -1)).transpose(1, 2) for one in (q, k, v)]
        return attn.to_out[0](self.attend(*split).transpose(1, 2).flatten(2))


@contextlib.contextmanager
def attention(bench: Bench, attend: Any, ending: str = "") -> Iterator[None]:
    before = {module: module.processor for name, module in bench.attentions.items() if name.endswith(ending)}
    for module in before:
        module.processor = Processor(attend)
    try:
        yield
    finally:
        for module, processor in before.items():
            module.processor = processor


@torch.library.custom_op("decouple_test::flash", mutates_args=())
def flash(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return functional.scaled_dot_product_attention(q, k, v)


quiet = torch.library.Library("decouple_test_quiet", "DEF")
quiet.define("flash(Tensor q, Tensor k, Tensor v) -> Tensor")
quiet.impl("flash", kernel, "CPU")


class TestProof:
    def test_a_whole_gradient_passes(self, bench: Bench, whole: Tensor) -> None:
        assert angle(bench.take(), whole) == pytest.approx(1, abs=1e-6)
        with attention(bench, functional.scaled_dot_product_attention):
            bench.gradient.proved = False
            assert angle(bench.take(), whole) == pytest.approx(1, abs=1e-6)
        assert bench.gradient.proved

    def test_what_takes_a_gradient_beside_the_latents_is_no_fault(self, bench: Bench, whole: Tensor) -> None:
        bench.context.requires_grad_()
        assert angle(bench.take(), whole) == pytest.approx(1, abs=1e-6)
        assert bench.gradient.proved

    def test_adding_in_place_to_what_a_layer_gave_is_no_fault(
        self, bench: Bench, whole: Tensor, monkeypatch: Any
    ) -> None:
        """As Forge's feed-forward parts, whose last layer's output the residual is added to."""
        layers = [module for name, module in bench.unet.named_modules() if name.endswith("ff")]
        assert len(layers) > 2
        for layer in layers:
            plain = layer.forward
            monkeypatch.setattr(layer, "forward", lambda x, *_, plain=plain: plain(x).add_(x).sub_(x))
        assert angle(bench.take(), whole) == pytest.approx(1, abs=1e-6)
        assert bench.gradient.proved

    def test_what_runs_behind_the_last_map_need_not_add_to_it(self, whole: Tensor) -> None:
        bench = Bench()
        bench.gradient.reader = MapReader(cross_attention_layers(bench.unet)[:2], [PLAN])
        ended = bench.take()
        bench.gradient.reader = MapReader(cross_attention_layers(bench.unet)[:2], [PLAN], stop=False)
        bench.gradient.proved = False
        torch.testing.assert_close(bench.take(), ended)
        assert bench.gradient.proved

    @pytest.mark.parametrize("factor", [2.0**-12, 2.0**-14, 2.0**-16])
    def test_what_half_precision_rounds_to_zero_is_no_cut(self, bench: Bench, factor: float) -> None:
        bench.unet.half()
        bench.latents, bench.context, bench.gradient.scaled = bench.latents.half(), bench.context.half(), False
        own = bench.gradient.loss
        bench.gradient.loss = lambda maps: factor * own(maps)
        bench.take()
        bench.gradient.proved = False
        with attention(bench, kernel, "attn1"), pytest.raises(GradientCut):
            bench.take()

    def test_a_gradient_of_zeros_shows_nothing(self, bench: Bench) -> None:
        bench.gradient.loss = lambda maps: maps.sum((1, 2, 3)) * 0
        assert not bench.take().any()
        assert not bench.gradient.proved

    @pytest.mark.parametrize("ending", ["attn1", "attn2", "mid_block.attentions.0.transformer_blocks.0.attn1"])
    @pytest.mark.parametrize("attend", [kernel, torch.ops.decouple_test_quiet.flash], ids=["kernel", "custom op"])
    @pytest.mark.filterwarnings("ignore::UserWarning")
    def test_an_attention_without_a_backward_is_named(self, bench: Bench, attend: Any, ending: str) -> None:
        with attention(bench, attend, ending), pytest.raises(GradientCut) as caught:
            bench.take()
        assert not bench.gradient.proved
        cut = caught.value.cuts[0]
        assert ending in cut.place
        assert cut.by == f"{__name__}.Processor"
        assert f"no gradient passes {cut.place}, which {__name__}.Processor computes" in str(caught.value)

    def test_without_the_proof_such_a_gradient_looks_like_one(self, whole: Tensor) -> None:
        bench = Bench()
        bench.gradient.proved = True
        with attention(bench, kernel, "attn1"):
            found = bench.take()
        assert found.norm() > 0
        assert angle(found, whole) < 0.99

    def test_an_op_that_refuses_says_so_itself(self, bench: Bench) -> None:
        with attention(bench, flash, "attn1"), pytest.raises(Exception, match="flash"):
            bench.take()

    def test_one_of_three_inputs_is_enough(self, bench: Bench) -> None:
        def values_alone(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            return functional.scaled_dot_product_attention(q.detach(), k.detach(), v)

        with attention(bench, values_alone, "attn1"), pytest.raises(GradientCut) as caught:
            bench.take()
        assert {cut.place for cut in caught.value.cuts} == {one for one in bench.attentions if one.endswith("attn1")}

    def test_a_layer_that_cuts_is_named(self, bench: Bench) -> None:
        linear = bench.unet.mid_block.attentions[0].transformer_blocks[0].ff.net[2]
        linear.forward = lambda x: functional.linear(x.detach(), linear.weight, linear.bias)
        with pytest.raises(GradientCut, match=r"mid_block.attentions.0.transformer_blocks.0.ff.net.2, which .*lambda"):
            bench.take()

    @pytest.mark.parametrize("fails", [None, GradientCut, MemoryError], ids=["whole", "cut", "out of memory"])
    def test_the_graph_goes_with_the_gradient(self, bench: Bench, fails: Any) -> None:
        """However it ended: a pass that is kept alive by its own proof takes megabytes of a job, on a GPU gigabytes."""

        def alive() -> int:
            gc.collect()
            return sum(isinstance(one, Proof) or type(one).__name__ == "AddmmBackward0" for one in gc.get_objects())

        def fail(*_: Any) -> Tensor:
            raise MemoryError

        before = alive()
        attend = kernel if fails is GradientCut else functional.scaled_dot_product_attention
        if fails is MemoryError:
            bench.gradient.loss = fail
        with attention(bench, attend), pytest.raises(fails) if fails else contextlib.nullcontext():
            bench.take()
        assert alive() == before

    def test_nothing_stays_hooked(self, bench: Bench, hooks_are_off: Any) -> None:
        with hooks_are_off(bench.unet), attention(bench, kernel, "attn1"), contextlib.suppress(GradientCut):
            bench.take()


class TestGradientsOn:
    @pytest.mark.parametrize("off", [torch.no_grad, torch.inference_mode, lambda: torch.set_grad_enabled(False)])
    def test_what_another_extension_wraps_takes_part(self, bench: Bench, whole: Tensor, off: Any) -> None:
        def wrapped(block: nn.Module) -> None:
            forward = block.forward

            def quietly(*args: Any, **kwargs: Any) -> Any:
                with off():
                    return forward(*args, **kwargs)

            block.forward = quietly

        for block in bench.unet.down_blocks:  # what ControlNet's extension does to the encoder
            wrapped(block)
        assert angle(bench.take(), whole) == pytest.approx(1, abs=1e-6)
        assert torch.is_grad_enabled()
        assert not torch.is_inference_mode_enabled()

    def test_a_decorated_attention_takes_part(self, bench: Bench, whole: Tensor) -> None:
        with attention(bench, torch.no_grad()(functional.scaled_dot_product_attention)):
            assert angle(bench.take(), whole) == pytest.approx(1, abs=1e-6)

    def test_gradients_are_as_they_were_after(self) -> None:
        with torch.no_grad():
            with GradientsOn() as on:
                with torch.no_grad():
                    assert torch.is_grad_enabled()
                assert on.overruled == {__file__}
            assert not torch.is_grad_enabled()

    def test_the_wrappers_own_forward_after_it_is_cut_again(self) -> None:
        leaf = torch.ones(1, requires_grad=True)
        with GradientsOn(), torch.no_grad():
            assert (leaf * 2).requires_grad
        with torch.no_grad():
            assert not (leaf * 2).requires_grad


class TestSlopes:
    def test_a_whole_gradient_predicts_them(self) -> None:
        bench = Bench()
        bench.loss(bench.latents)
        gradient = bench.gradient(bench.latents, [0], bench.run).gradient
        found = slopes(bench.loss, bench.latents, gradient, directions=6)
        predicted, seen = (torch.tensor(side) for side in zip(*found))
        assert seen[0] == pytest.approx(float(predicted[0]), rel=0.02)
        assert angle(predicted[1:], seen[1:]) > 0.999

    def test_a_cut_one_does_not(self) -> None:
        bench = Bench()
        bench.gradient.proved = True
        with attention(bench, kernel, "attn1"):
            gradient = bench.gradient(bench.latents, [0], bench.run).gradient
            found = slopes(bench.loss, bench.latents, gradient, directions=16)
        predicted, seen = (torch.tensor(side) for side in zip(*found))
        assert angle(predicted[1:], seen[1:]) < 0.99


class Tf32Convolutions(TorchFunctionMode):
    """A GPU's convolutions: operands of float32 lose 13 of their 23 bits, where torch's switch for that is on."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is functional.conv2d and convolutions_are_short():
            args = (*(self._shortened(one) for one in args[:2]), *args[2:])
        return func(*args, **(kwargs or {}))

    @staticmethod
    def _shortened(value: Tensor) -> Tensor:
        bits = value.detach().contiguous().view(torch.int32)
        return ((bits + 0x1000) & ~0x1FFF).view(torch.float32)


def convolutions_are_short() -> bool:
    own = getattr(torch.backends.cudnn, "conv", None)
    if hasattr(own, "fp32_precision"):
        return own.fp32_precision == "tf32"
    return torch.backends.cudnn.allow_tf32


@pytest.mark.parametrize("allowed", [True, False])
def test_a_gradient_is_held_against_differences_without_tf32_and_the_switch_is_as_before(allowed: bool) -> None:
    """As torch has it on a GPU by default, the doctor told of a sound gradient that it can't be trusted."""
    bench = Bench()
    gradient = bench.gradient(bench.latents, [0], bench.run).gradient
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = allowed
    try:
        with Tf32Convolutions():
            found = slopes_of(bench.gradient, bench.latents, [0], bench.run, gradient)
            short = slopes(lambda x: bench.loss(x), bench.latents, gradient, LENGTHS[0], 6)
        assert convolutions_are_short() == allowed
        assert torch.backends.cudnn.allow_tf32 == allowed
    finally:
        torch.backends.cudnn.allow_tf32 = before
    assert misfit(found) <= 0.1
    assert (misfit(short) > MISFIT) == allowed, "the emulation says nothing"


@pytest.mark.skipif(not hasattr(torch.backends, "fp32_precision"), reason="this torch has no switch for all")
@pytest.mark.parametrize("pinned", [False, True])
def test_a_switch_that_goes_by_the_one_for_all_still_does_so_after(pinned: bool) -> None:
    """In a process of its own, as a kind's own switch can't be unset."""
    code = f"""
import torch
from lib_decouple.core.maps import full_precision_convolutions
backends = torch.backends
if {pinned}:
    backends.cudnn.allow_tf32 = True
before = backends.fp32_precision, backends.cudnn.conv.fp32_precision
with full_precision_convolutions():
    assert backends.cudnn.conv.fp32_precision == backends.mkldnn.conv.fp32_precision == "ieee"
assert (backends.fp32_precision, backends.cudnn.conv.fp32_precision) == before
backends.fp32_precision = "ieee"
assert backends.cudnn.conv.fp32_precision == ("tf32" if {pinned} else "ieee")
"""
    here = Path(__file__).resolve().parents[2]
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, cwd=here)
    assert done.returncode == 0, done.stderr
