"""What is done about memory: told when it has ended, how much is free, and what is tried before guidance gives up."""

from __future__ import annotations

import gc
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from .maps import CLIP_COLUMNS, CrossAttentionLayer, level_size

# torch 2.1 to 2.4 have the CUDA one only; 2.5 made it general.
_TORCH_OUT_OF_MEMORY = getattr(torch, "OutOfMemoryError", None) or torch.cuda.OutOfMemoryError
OUT_OF_MEMORY: tuple[type[BaseException], ...] = (_TORCH_OUT_OF_MEMORY, MemoryError)

_WORDS = (
    "out of memory",  # CUDA, HIP, MPS
    "out_of_memory", "out_of_device_memory", "out_of_host_memory", "out_of_resources",  # ROCm, Level Zero
    "allocate memory",  # the CPU's allocator on Linux
    "not enough memory",  # the CPU's on Windows, and Doggettx's attention
    "not enough gpu video memory", "could not allocate",  # DirectML
    "invalid buffer size", "failed to allocate",  # MPS, Metal
    "_status_alloc_failed",  # cuBLAS, cuDNN, cuSOLVER
    "cublas_status_not_initialized",  # cuBLAS finds no room for its own handle
    "cudnn_status_not_supported", "cudnn_status_internal_error",  # cuDNN finds no plan that fits
    "was unable to find an engine", "unable to find a valid cudnn algorithm",
)  # fmt: skip

_KEPT_A_CHANNEL = 32
"""Numbers kept for a gradient, over pixels times channels of all transformer blocks on the way. Counted on shapes
with an attention that keeps no map of its own, the convolutions' part included: SD 1.5 31, XL 25 (test_memory.py)."""
_OF_MAPS = 4
"""Bytes kept of each number of a map that is read: heads times pixels times the text's columns. The figures here have
those of a text of 77 columns in them."""
_AGAIN_A_CHANNEL, _AGAIN_A_TRANSFORMER, _AGAIN_LAST = 1.1, 5, 8
"""The same where blocks are computed again: a block's input, what stands around each transformer's blocks, and the
block left alone. Counted likewise: SD 1.5 0.07 GB at 512x512, XL 0.30 GB at 1024x1024."""
_SHARE_OF_FREE = 0.8
"""What a gradient may take of the free memory; taking it needs some more than what was kept for it."""


def present(device: str) -> torch.device:
    """Torch's ``device``. Raises ValueError for one that is not there, by that name."""
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:  # the second: torch built without CUDA
        raise ValueError(f"device: {device!r} is not there: {str(error).splitlines()[0]}") from None
    return torch.device(device)


def is_out_of_memory(error: BaseException) -> bool:
    """Does it say, in any backend's words, that memory has ended?"""
    told = f"{error} {error.__cause__ or ''}".lower()
    return isinstance(error, OUT_OF_MEMORY) or (
        isinstance(error, (RuntimeError, OSError)) and any(words in told for words in _WORDS)
    )


def free(device: torch.device) -> int | None:
    """Bytes that can still be allocated on ``device``; None where that can't be known."""
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + unused
    if device.type == "mps" and hasattr(torch.mps, "recommended_max_memory"):
        return max(0, torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory())
    return None


def total(device: torch.device) -> int | None:
    """Bytes that ``device`` has; None where that can't be known."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[1]
    if device.type == "mps" and hasattr(torch.mps, "recommended_max_memory"):
        return torch.mps.recommended_max_memory()
    return None


def fits(needed: int, there: int) -> bool:
    """Will a gradient that keeps ``needed`` bytes do with the ``there`` that are free?"""
    return needed <= int(_SHARE_OF_FREE * there)


def give_back() -> None:
    """Let go of what a failed pass has left."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    elif torch.backends.mps.is_available():
        torch.mps.empty_cache()


def kept_bytes(
    layers: Sequence[CrossAttentionLayer],
    read: Sequence[CrossAttentionLayer],
    size: tuple[int, int],
    rows: int,
    width: int,
    recompute: bool = False,
    whole_softmax: bool = False,
) -> int:
    """Bytes that a gradient keeps of a pass of ``rows``, estimated.

    ``layers`` are all of the model's, of which the pass reads some and ends with their last; ``size`` is the latents'
    height and width, and ``width`` the bytes of a number. With ``recompute`` blocks are computed again, and the
    largest one's own part counts while it is. ``whole_softmax``: the denoiser's attention keeps every head's map of all
    pixels by all.
    """
    numbers: list[int] = []
    transformers: dict[str, int] = {}
    softmaxes: list[int] = []
    maps: list[int] = []
    of_read = {id(layer.module) for layer in read}
    for layer in layers:
        (height, wide), parts = level_size(*size, layer.factor), layer.reader(layer.module)
        numbers.append(height * wide * int(getattr(parts.query, "in_features", 0)))
        softmaxes.append(parts.heads * (height * wide) ** 2 if whole_softmax else 0)
        columns = layer.columns - CLIP_COLUMNS if id(layer.module) in of_read else 0
        maps.append(_OF_MAPS * parts.heads * height * wide * columns)
        if layer.third is None:  # nothing stands around a transformer's blocks where they are all of the denoiser
            transformers[layer.transformer] = numbers[-1]
        if layer.module is read[-1].module:
            break
    if not recompute:
        return rows * (width * (_KEPT_A_CHANNEL * sum(numbers) + sum(softmaxes)) + sum(maps))
    inputs = _AGAIN_A_CHANNEL * sum(numbers) + _AGAIN_A_TRANSFORMER * sum(transformers.values())
    meanwhile = max(
        width * (_KEPT_A_CHANNEL * own + softmax) + one for own, softmax, one in zip(numbers, softmaxes, maps)
    )
    last = width * (_AGAIN_LAST * numbers[-1] + softmaxes[-1]) + maps[-1]
    return rows * int(width * inputs + last + meanwhile)


@dataclass
class Thrift:
    """What a run does to get by with the memory there is; what it had to learn holds for the rest of the run."""

    one_at_a_time: bool = False
    """One image a pass."""
    recompute: bool = False
    """Blocks are computed again for the gradient instead of kept."""
    may_recompute: bool = True

    def tighten(self, images: int) -> bool:
        """Choose the next more frugal way for a pass of so many images that has not fitted; is there one?"""
        if images > 1 and not self.one_at_a_time:
            self.one_at_a_time = True
        elif self.may_recompute and not self.recompute:
            self.recompute = True
        else:
            return False
        return True

    def foresee(self, images: int, needed: int, there: int | None) -> None:
        """Tighten before a first pass that keeps ``needed`` bytes for so many images, where ``there`` are free."""
        if there is None:
            return
        if not fits(needed, there):
            self.one_at_a_time = self.one_at_a_time or images > 1
            needed //= images
        if not fits(needed, there) and self.may_recompute:
            self.recompute = True
