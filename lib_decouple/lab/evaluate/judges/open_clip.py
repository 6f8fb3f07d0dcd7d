"""CLIP similarity by the package open_clip, whose checkpoints ``transformers`` mostly cannot read."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .base import Item, Missing, absent, local, refuse_untrained, rgb
from .clip import Clip


class OpenClip(Clip):
    """As :class:`Clip`. The source is a folder or hub name with ``open_clip_config.json``, or MODEL/WEIGHTS as the
    package lists them ("ViT-B-16/laion2b_s34b_b88k")."""

    kind = "open-clip"

    def _load(self) -> None:
        folder = local(self.source, self.kind)
        try:
            import open_clip
        except Exception as error:  # torchvision fails with RuntimeError beside a torch that it was not built for
            raise Missing(
                f"needs the packages open_clip_torch and torchvision: {type(error).__name__}: {error}"
            ) from None
        name, _, weights = self.source.partition("/")
        if Path(folder).is_dir():
            name, weights = f"local-dir:{folder}", ""
        elif name not in open_clip.list_models():
            name, weights = f"hf-hub:{self.source.removeprefix('hf-hub:')}", ""
        try:
            self.model, self.preprocess = open_clip.create_model_from_pretrained(
                name, weights or None, device=self.options.device, return_transform=True
            )
            self.tokenizer = open_clip.get_tokenizer(name)
        except Exception as error:
            raise Missing(absent(self.source, error)) from None
        self.model = self.model.to(self.options.torch_dtype).eval()
        refuse_untrained(self.model, self.source)

    def embed(self, items: Sequence[Item], texts: list[str]) -> tuple[Any, Any]:
        """Embeddings ``[images, width]`` and ``[texts, width]``; the package cuts texts at the model's longest."""
        import torch

        pixels = torch.stack([self.preprocess(image) for image in rgb(items)])
        ids = self.tokenizer(texts).to(self.options.device)
        return (
            self.model.encode_image(pixels.to(self.options.device, self.options.torch_dtype)),
            self.model.encode_text(ids),
        )
