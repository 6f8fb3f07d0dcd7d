"""The model that a host's next job draws with, and what is told of it beforehand; in real hosts: tests/hosts."""

from __future__ import annotations

import sys
import types
from types import SimpleNamespace

import pytest
from torch import nn

from lib_decouple.webui import loaded

OLD, NEW = SimpleNamespace(filename="old.safetensors"), SimpleNamespace(filename="new.safetensors")
FAKE = type("FakeInitialModel", (), {})()
WHOLE = object()


def of_a1111(checkpoint=OLD):
    return SimpleNamespace(sd_checkpoint_info=checkpoint, cond_stage_model=object())


def of_forge(checkpoint=OLD):
    return SimpleNamespace(sd_checkpoint_info=checkpoint, forge_objects=object())


@pytest.fixture
def webui(monkeypatch):
    """Makes a stand-in of the host's modules: its model, the name of the chosen checkpoint, the hijacked encoder."""

    def make(model, chosen="old", clip=WHOLE):
        package = types.ModuleType("modules")
        aliases = {"old": OLD, "old [123]": OLD, "new": NEW}
        for name, content in {
            "sd_models": {"model_data": SimpleNamespace(sd_model=model), "checkpoint_aliases": aliases},
            "shared": {"opts": SimpleNamespace(sd_model_checkpoint=chosen)},
            "sd_hijack": {"model_hijack": SimpleNamespace(clip=clip)},
        }.items():
            module = types.ModuleType(f"modules.{name}")
            vars(module).update(content)
            setattr(package, name, module)
            monkeypatch.setitem(sys.modules, module.__name__, module)
        monkeypatch.setitem(sys.modules, "modules", package)

    return make


@pytest.mark.parametrize("kind", [of_a1111, of_forge])
@pytest.mark.parametrize("chosen", ["old", "old [123]", "gone from its folder", None])
def test_it_is_the_one_that_is_chosen_under_any_of_its_names(webui, kind, chosen):
    model = kind()
    webui(model, chosen)
    assert loaded.loaded_model() is model


@pytest.mark.parametrize(
    ("model", "chosen", "clip"),
    [
        (None, "old", WHOLE),  # while A1111 loads its first
        (FAKE, "old", WHOLE),  # Forge's, until the first picture
        (of_a1111(), "new", WHOLE),  # while A1111 reads another file
        (of_forge(), "new", WHOLE),  # in Forge from its choice to the next picture
        (of_a1111(NEW), "old", WHOLE),  # behind a refiner's job
        (of_a1111(), "old", None),  # weights are read into the model that is there
    ],
)
def test_there_is_none_while_the_chosen_one_is_not_there_as_a_whole(webui, model, chosen, clip):
    webui(model, chosen, clip)
    assert loaded.loaded_model() is None


def test_a_forge_s_model_needs_nothing_of_the_hijack(webui):
    model = of_forge()
    webui(model, clip=None)
    assert loaded.loaded_model() is model


class Denoiser(nn.Module):
    """A UNet of ldm's layout, or one with joint attention alone."""

    def __init__(self, attention: str) -> None:
        super().__init__()
        block = nn.Module()
        block.add_module(attention, nn.Linear(1, 1))
        self.input_blocks, self.middle_block, self.output_blocks = nn.ModuleList([block]), nn.Module(), nn.ModuleList()


@pytest.mark.parametrize(
    ("denoiser", "tokens", "guided"),
    [
        (Denoiser("attn2"), True, True),
        (Denoiser("joint"), True, False),  # Flux and SD 3 have CLIP's tokens besides
        (nn.Linear(1, 1), True, False),
        (Denoiser("attn2"), False, False),
        (None, True, False),
    ],
)
def test_what_can_not_be_guided_is_told_though_it_has_tokens(monkeypatch, denoiser, tokens, guided):
    def tokenize(text):
        if not tokens:
            raise loaded.Unsupported("no text encoder that is known")
        return []

    monkeypatch.setattr(loaded.detect, "adapter", lambda model: SimpleNamespace(tokenize=tokenize))
    model = type("Flux", (), {"model": SimpleNamespace(diffusion_model=denoiser)})()
    told = "" if guided else "This model (Flux) can't be guided; SD 1.x, 2.x, XL and Anima can."
    assert [loaded.why_not_guided(model) for _ in range(2)] == [told, told]
