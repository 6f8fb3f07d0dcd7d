"""Reasons for standing aside name what a person can do, and nothing of the insides."""

from __future__ import annotations

import re
from types import SimpleNamespace

import pytest
import torch

from lib_decouple.core.gradient import NonFinite
from lib_decouple.core.maps import AttentionReplaced, ContextMisfit, MapsMisfit
from lib_decouple.core.schedule import Schedule
from lib_decouple.hosts import reasons
from lib_decouple.prompt.align import EntityNotFound

INSIDES = [
    MapsMisfit("layers: input_blocks.5.1.transformer_blocks.0.attn2 has 4 pixels, not 4 x 4, for latents 16 x 16"),
    ContextMisfit("tokens: [2, 79] reach outside a context of 77 tokens"),
    AttentionReplaced("layers: output_blocks.3.1.transformer_blocks.0.attn2 left no map; did the pass reach them?"),
    NonFinite("the gradient is not finite"),
    ValueError("maps: shape (1, 0, 4, 4) has no entity or no pixel"),
    RuntimeError("mat1 and mat2 shapes cannot be multiplied (77x768 and 2048x640)"),
    KeyError("c_crossattn"),
    AttributeError("'UNetModel' object has no attribute 'input_blocks'"),
    ZeroDivisionError(),
    MemoryError(),
    RuntimeError("MPS backend out of memory"),
    torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
]


@pytest.mark.parametrize("error", INSIDES, ids=lambda error: f"{type(error).__name__} {error}"[:40])
def test_no_reason_tells_insides(error):
    told = reasons.explained(error)
    assert not re.search(r"Error|Exception|attn2|_blocks|shape|tensor|tokens:|\w\.\w+\.\w|[\[\]{}]", told), told
    assert len(told) > 30


@pytest.mark.parametrize(
    "title",
    ["Tiled Diffusion", "Kohya HRFix Integrated", "Kohya Hires.fix", "MultiDiffusion Integrated", "hypertile"],
)
def test_the_extension_that_is_switched_on_is_named(title):
    told = reasons.explained(INSIDES[0], ["Dynamic Prompts v2.17.1", title])
    assert f"“{title}”, which is switched on" in told
    assert "Dynamic" not in told


@pytest.mark.parametrize(("error", "known"), [(0, "Tiled Diffusion"), (1, "Regional Prompter"), (2, "ControlNet")])
def test_where_none_is_known_to_be_on_those_are_named_that_do_so(error, known):
    assert known in reasons.explained(INSIDES[error], ["ADetailer"])


def test_an_error_in_an_extension_s_own_code_names_it(tmp_path, caplog):
    folder = tmp_path / "extensions" / "sd-webui-other" / "scripts"
    folder.mkdir(parents=True)
    (folder / "other.py").write_text("def forward():\n    return {}['c_crossattn']\n")
    scope: dict = {}
    exec(compile((folder / "other.py").read_text(), str(folder / "other.py"), "exec"), scope)
    with pytest.raises(KeyError) as caught:
        scope["forward"]()
    told = reasons.explained(caught.value)
    assert "“sd-webui-other”" in told
    assert "c_crossattn" not in told
    assert "c_crossattn" in caplog.text  # but whoever looks into the console finds it


def test_what_a_person_set_is_told_as_it_is():
    for text in ("factor: 3 is not allowed; this model has 1, 2", "layers: 'up' is not allowed; at factor 1 …"):
        assert reasons.explained(ValueError(text)) == text
    assert reasons.explained(EntityNotFound('entities: "dog" is not in the prompt.')).startswith("entities:")


def test_scripts_that_are_switched_on():
    def script(title, start, end):
        return SimpleNamespace(title=lambda: title, args_from=start, args_to=end)

    always = [script("Tiled VAE", 1, 2), script("Tiled Diffusion", 2, 4), script("Extra", 4, 4), script("Texts", 4, 5)]
    chosen = [script("X/Y/Z plot", 5, 6), script("img2img alternative test", 5, 6)]
    scripts = SimpleNamespace(alwayson_scripts=always, selectable_scripts=chosen)
    p = SimpleNamespace(scripts=scripts, script_args=(2, False, True, 8, "text", None))
    assert reasons.switched_on(p) == ["Tiled Diffusion", "img2img alternative test"]
    assert reasons.switched_on(SimpleNamespace()) == []
    assert reasons.switched_on(SimpleNamespace(scripts=None, script_args=None)) == []


@pytest.mark.parametrize(
    ("start", "steps", "total", "words"),
    [
        (5, 14, 20, ""), (5, 14, 4, "5 are passed over and the sampler makes 4"), (0, 0, 1, ""),
        (5, 0, 8, "only the first 4 may be"), (3, 14, 4, ""), (4, 14, 4, "makes 4"),
    ],
)  # fmt: skip
def test_a_window_that_holds_no_step_says_why(start, steps, total, words):
    told = reasons.no_guided_step(Schedule(steps, 1, start), total)
    assert words in told
    assert bool(told) == bool(words)


@pytest.mark.parametrize(
    ("names", "loss", "words"),
    [
        ([], "com", "no entity"), ([], "intensity", "no entity"), (["cat"], "com", "needs two"),
        (["cat"], "iou + kl(form=js)", "needs two"), (["cat"], "com + 0.1*intensity", ""), (["cat", "dog"], "com", ""),
        (["cat"], "spread", ""),
    ],
)  # fmt: skip
def test_too_few_entities_say_what_to_do(names, loss, words):
    told = reasons.too_few(names, loss)
    assert words in told
    assert bool(told) == bool(words)
