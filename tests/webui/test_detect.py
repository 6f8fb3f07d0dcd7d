"""Which host it is, by features."""

from __future__ import annotations

import runpy
import sys
import types
from pathlib import Path
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


HAS = {
    "scripts": {"AlwaysVisible": object(), "Script": SimpleNamespace(process_before_every_sampling=1)},
    "script_callbacks": {"on_before_ui": 1, "on_app_started": 1}, "ui_components": {"InputAccordion": 1},
    "sd_samplers": {"find_sampler_config": 1}, "prompt_parser": {"reconstruct_multicond_batch": 1},
}  # fmt: skip


def put(monkeypatch, without=""):
    """A WebUI of empty modules, less one module or attribute."""
    for name in [name for name in sys.modules if name.partition(".")[0] == "modules"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "modules", types.ModuleType("modules"))
    for name, attributes in HAS.items():
        if name != without:
            module = types.ModuleType(f"modules.{name}")
            vars(module).update({k: v for k, v in attributes.items() if f"{name}.{k}" != without})
            monkeypatch.setitem(sys.modules, module.__name__, module)


def test_a_webui_that_has_all_is_taken(monkeypatch):
    put(monkeypatch)
    detect.check_webui()


@pytest.mark.parametrize("without", ["ui_components", "scripts.Script", "script_callbacks.on_before_ui", "sd_samplers"])
def test_a_webui_that_lacks_something_is_told_so_when_it_loads_the_script(monkeypatch, without):
    """WebUIs print what a script raises while it is loaded, and start without it."""
    put(monkeypatch, without)
    before = set(sys.modules)
    with pytest.raises(Unsupported, match=f"left out: this WebUI has no {without}.* have$"):
        runpy.run_path(str(Path(__file__).parents[2] / "scripts/decouple.py"))
    assert not {name for name in set(sys.modules) - before if name.startswith("lib_decouple.webui")}
