"""Which host it is, by features."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from lib_decouple.hosts import detect
from lib_decouple.hosts.ldm import Unsupported

from . import host as stand_in


def test_the_adapter_follows_what_the_model_has(monkeypatch):
    shared = stand_in.install(monkeypatch, unet=object())
    assert detect.adapter(shared.sd_model).__name__ == "lib_decouple.hosts.a1111"


@pytest.mark.parametrize("model", [None, SimpleNamespace(), SimpleNamespace(model=SimpleNamespace(diffusion_model=1))])
def test_an_unknown_host_is_told_in_words(model):
    with pytest.raises(Unsupported, match=f"model \\({type(model).__name__}\\) is like that of no WebUI known here"):
        detect.adapter(model)
