"""Guidance of diffusers' modular pipeline of Anima.

Such pipelines are made to be changed by blocks of one's own: :class:`GuideStep` stands in front of the denoising
loop's, and the latents that it leaves are those that the denoiser sees and the sampler goes on with.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from diffusers import CosmosTransformer3DModel
from diffusers.modular_pipelines import LoopSequentialPipelineBlocks, ModularPipelineBlocks
from diffusers.modular_pipelines.modular_pipeline_utils import ComponentSpec, InputParam
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from ..core.gradient import rows
from ..core.maps import ImagePlan
from ..core.observe import Observers
from ..core.schedule import flow_scale
from ..core.trace import ImageTrace, Tracer
from ..profiles import closed
from ..prompt.align import Piece
from ..settings import DRAFTING, Settings
from . import anima
from .base import Session, make_guide
from .ldm import plan_image


class GuideStep(ModularPipelineBlocks):
    """Moves the latents ``[batch, channels, 1, height, width]`` at the steps that the settings say.

    Without ``entities`` those of each prompt are found. After a call of the pipeline ``traces`` has what was done to
    each image, and ``stood_aside`` why guidance ended early, or is empty. A prompt that does not name an entity raises
    EntityNotFound (a ValueError), as do settings that the model cannot follow.
    """

    model_name = "anima"

    def __init__(self, settings: Settings, entities: Sequence[str] = ()) -> None:
        super().__init__()
        self.settings, self.entities = settings, tuple(entities)
        self.traces: list[ImageTrace] = []
        self._session: Session | None = None

    def __deepcopy__(self, memo: Any) -> GuideStep:
        return self  # a pipeline copies its blocks, and the caller is to read what this one has seen

    @property
    def stood_aside(self) -> str:
        """Why guidance ended early; empty while it works."""
        return self._session.stood_aside if self._session else ""

    @property
    def description(self) -> str:
        """As diffusers asks for one."""
        return "Moves the latents so that the cross-attention maps of a prompt's entities come apart."

    @property
    def expected_components(self) -> list[ComponentSpec]:
        """The denoiser, and the tokenizer whose tokens are its context's columns."""
        return [
            ComponentSpec("transformer", CosmosTransformer3DModel),
            ComponentSpec("t5_tokenizer", PreTrainedTokenizerBase),
        ]

    @property
    def inputs(self) -> list[InputParam]:
        """What the loop has when it begins."""
        names = ("prompt", "latents", "prompt_embeds", "padding_mask", "dtype", "num_inference_steps")
        return [InputParam(name, required=True) for name in names]

    @torch.no_grad()
    def __call__(self, components: Any, block_state: Any, i: int, t: Tensor) -> tuple[Any, Any]:
        """As every block of a loop: at step ``i`` of the scheduler's time ``t``."""
        if i == 0:
            self._session = self._begun(components, block_state)
        if self._session is None:
            return components, block_state
        transformer, dtype = components.transformer, block_state.dtype
        time = t / components.scheduler.config.num_train_timesteps
        unit = flow_scale(time.float())

        def run(z: Tensor, images: Sequence[int]) -> None:
            transformer(
                hidden_states=(z * unit).to(dtype),
                timestep=time.expand(len(images)).to(dtype),
                encoder_hidden_states=rows(block_state.prompt_embeds, images).to(dtype),
                padding_mask=block_state.padding_mask,
                return_dict=False,
            )

        x = block_state.latents
        z = x / unit
        moved = self._session.before_step(z, i, block_state.num_inference_steps, run)
        self._session.show(i)
        if moved is not z:  # what is not guided stays the pipeline's own, to the bit
            block_state.latents = x + ((moved - z) * unit).to(x.dtype)
        return components, block_state

    def _begun(self, components: Any, block_state: Any) -> Session | None:
        """A session for this call of the pipeline; none where the settings switch it off."""
        self.traces = []
        if not self.settings.enabled:
            return None
        settings = closed(self.settings, anima.PROFILE, block_state.num_inference_steps)
        if settings.gradient != "exact":
            raise ValueError(
                f"gradient: {settings.gradient!r} is not allowed in this pipeline, whose own pass is not seen; exact"
            )
        if settings.look in DRAFTING:
            raise ValueError(
                f"look: {settings.look!r} is not allowed in this pipeline, which draws the seed it is given; off, tell"
            )
        prompts = [block_state.prompt] if isinstance(block_state.prompt, str) else list(block_state.prompt)
        each = len(block_state.latents) // len(prompts)
        plans = [self._plan(components, prompt) for prompt in prompts for _ in range(each)]
        self.traces = [ImageTrace(plan.names) for plan in plans]
        layers = anima.cross_attention_layers(components.transformer)
        tracer = Tracer(self.traces, everything=True)
        guide = make_guide(settings, components.transformer, layers, plans, anima.LEVEL)
        return Session(guide, observers=Observers([tracer]))

    def _plan(self, components: Any, prompt: str) -> ImagePlan:
        def tokenize(text: str) -> list[Piece]:
            tokenizer = components.t5_tokenizer
            return anima.pieces(tokenizer.convert_ids_to_tokens(tokenizer(text, add_special_tokens=False).input_ids))

        return plan_image([prompt], self.entities, tokenize, skip_missing=self.settings.skip_missing)


def guided(pipe: Any, step: GuideStep) -> Any:
    """A ModularPipeline of ``pipe``'s components, whose denoising loops ``step`` guides; ``pipe`` stays as it is.

    Raises ValueError where there is no such loop.
    """
    blocks = pipe.blocks  # a copy
    loops: list[Any] = [one for one in _inside(blocks) if isinstance(one, LoopSequentialPipelineBlocks)]
    if not loops:
        raise ValueError("pipe: its blocks have no denoising loop")
    for loop in loops:
        loop.sub_blocks.insert("guide", step, 0)
    made = blocks.init_pipeline()
    made.update_components(**{name: part for name, part in pipe.components.items() if part is not None})
    return made


def _inside(block: Any) -> Iterator[Any]:
    yield block
    for inner in getattr(block, "sub_blocks", {}).values():
        yield from _inside(inner)
