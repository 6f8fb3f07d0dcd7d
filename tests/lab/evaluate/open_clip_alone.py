"""The judge open-clip on a small random model of open_clip's own; run by test_open_clip.py in a process of its own.

torchvision's compiled operators load beside that torch only which they were built for. open_clip needs none of them,
but torchvision declares shapes for them when imported; where they cannot be had they are declared here.
"""

from __future__ import annotations

import json
import re
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

SIDE = 32
PROMPTS = [("a cat and a dog", ["cat", "dog"]), ("a bear with glasses", ["bear", "glasses"])]


def declare_operators() -> Any:
    """Operators that torchvision's Python files name; gives what keeps them alive."""
    spec = find_spec("torchvision")
    text = (Path(spec.submodule_search_locations[0]) / "_meta_registrations.py").read_text()  # type: ignore[union-attr,index]
    library = torch.library.Library("torchvision", "DEF")
    for name in sorted(set(re.findall(r'(?:register_meta\("|register_fake\("torchvision::)(\w+)"', text))):
        library.define(f"{name}(Tensor x) -> Tensor")
    return library


def make(folder: Path, trained: bool) -> Any:
    """A small model saved as open_clip's hub folders are; gives the model and its preparation of images."""
    import open_clip
    from safetensors.torch import save_file

    torch.manual_seed(0)
    config = {
        "embed_dim": 16,
        "vision_cfg": {"image_size": SIDE, "layers": 2, "width": 32, "patch_size": 8, "head_width": 16},
        "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2},
    }
    model = open_clip.CLIP(**{name: value for name, value in config.items()}).eval()  # type: ignore[arg-type]
    if trained:
        for module in model.modules():
            if "Norm" in type(module).__name__:
                module.weight.data += 0.1 * torch.randn_like(module.weight)
    folder.mkdir(parents=True)
    normal = {"mean": [0.5] * 3, "std": [0.5] * 3}
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": normal}))
    save_file(
        {name: value.contiguous() for name, value in model.state_dict().items()}, folder / "open_clip_model.safetensors"
    )
    return model


def main(folder: Path) -> None:
    """Print, as JSON, the judge's scores, those computed with open_clip directly, and why others cannot be had."""
    try:
        import torchvision  # noqa: F401
    except RuntimeError:
        for name in [name for name in sys.modules if name.startswith("torchvision")]:
            del sys.modules[name]
        kept = declare_operators()  # noqa: F841
    import open_clip

    from lib_decouple.lab.evaluate.judges import Options, named
    from lib_decouple.lab.evaluate.judges.base import Item

    model = make(folder / "trained", True)
    make(folder / "untrained", False)
    rng = np.random.default_rng(0)
    items = [
        Item(Image.fromarray(rng.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)), prompt, tuple(entities))
        for prompt, entities in PROMPTS
    ]
    (judge,), _ = named(f"open-clip:{folder / 'trained'}", Options())
    _, lacking = named(f"open-clip:{folder / 'untrained'},open-clip:{folder}", Options())
    half = named(f"open-clip:{folder / 'trained'}", Options(dtype="bfloat16"))[0][0]

    pixels = torch.stack([torch.from_numpy(np.asarray(i.image).copy()).permute(2, 0, 1) / 127.5 - 1 for i in items])
    texts = ["a cat and a dog", "a cat", "a dog", "a bear with glasses", "a bear", "glasses"]
    with torch.no_grad():
        image, text = (
            model.encode_image(pixels, normalize=True),
            model.encode_text(open_clip.tokenize(texts), normalize=True),
        )
        cosines = (image @ text.T).tolist()
    print(json.dumps({
        "scores": [list(own.values()) for own in judge.score(items)],
        "alone": [list(judge.score([item])[0].values()) for item in items],
        "half": [list(own.values()) for own in half.score(items)],
        "expected": [cosines[0][:3], cosines[1][3:]],
        "lacking": lacking,
    }))  # fmt: skip


if __name__ == "__main__":
    main(Path(sys.argv[1]))
