"""``python -m lib_decouple.webui.localize``: write ``localizations/template.json.txt`` anew and tell what each
translation lacks.

The WebUI translates what stands on its page as a whole: a label, a help text, a button, a placeholder. The texts are
collected from the controls as :mod:`ui` makes them, the options, and the scripts of the page, which mark theirs by
``say("…")`` or ``decoupleSay("…")``. A translation is ``localizations/NAME.json``, a mapping from these texts to its
own; NAME is what the WebUI's setting "Localization" offers. Neither gradio nor a WebUI is needed.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from html import unescape
from pathlib import Path
from types import ModuleType
from typing import Any

from ..presets import BUILT_IN

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "localizations"
TEMPLATE = FOLDER / "template.json.txt"
"""Not ``.json``: the WebUI would offer it as a language."""

_SAID = re.compile(r'\b(?:say|decoupleSay)\(\s*("(?:[^"\\]|\\.)*")')
_SHOWN = re.compile(r'[_.](?:paragraph|table)\((?:\w+ or )?\s*("(?:[^"\\]|\\.)*")')
_HEAD = re.compile(r"<th>([^<{]+)</th>")
_TEXTS = ("label", "info", "placeholder")


class _Component:
    """Stands for any component of gradio, and keeps the texts that it was given."""

    def __init__(self, texts: list[str], first: str, *args: Any, **given: Any) -> None:
        texts += [given[name] for name in _TEXTS if given.get(name)]
        if first:
            texts += _pieces(str(args[0] if args else given.get(first, "")))

    def __enter__(self) -> _Component:
        return self

    def __exit__(self, *_: Any) -> None: ...

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return lambda *args, **given: self


def texts() -> list[str]:
    """All texts of ours that the page shows whole, each once, in the order of the page."""
    command = [sys.executable, "-m", __spec__.name, "collect"]  # apart, as it needs a gradio of its own
    return list(json.loads(subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout))


def _collected() -> list[str]:
    found: list[str] = []
    sys.modules["gradio"] = _gradio(found)
    from . import options, ui

    accordion = _component(found, "")
    ui.controls(lambda _, **given: accordion(**given), lambda name: name, FOLDER)
    for one in options.OPTIONS.values():
        found += [one.label, f"({one.help})"]  # as the settings page has it
    found += [options.SECTION[1], options.DEFAULTS_TEXT]
    found += [one.reason for one in BUILT_IN]
    for path in sorted(Path(__file__).parent.glob("*.py")):
        source = path.read_text("utf-8")
        found += [json.loads(text) for text in _SHOWN.findall(source) if "{" not in text]
        found += _HEAD.findall(source)
    for path in sorted((ROOT / "javascript").glob("*.js")):
        found += map(json.loads, _SAID.findall(path.read_text("utf-8")))
    return [text for text in dict.fromkeys(found) if re.search(r"[A-Za-z]{2}", text)]


def translations() -> dict[str, dict[str, str]]:
    """Each translation by its name."""
    return {path.stem: json.loads(path.read_text("utf-8")) for path in sorted(FOLDER.glob("*.json"))}


def main() -> None:
    """Write the template, and tell what translations lack and no longer need."""
    wanted = texts()
    FOLDER.mkdir(exist_ok=True)
    TEMPLATE.write_text(json.dumps(dict.fromkeys(wanted, ""), indent=2, ensure_ascii=False) + "\n", "utf-8")
    print(f"{TEMPLATE.relative_to(ROOT)}: {len(wanted)} texts")
    for name, translated in translations().items():
        for text in wanted:
            if text not in translated:
                print(f"{name}: lacks {json.dumps(text, ensure_ascii=False)}")
        for text in translated:
            if text not in wanted:
                print(f"{name}: no longer needed {json.dumps(text, ensure_ascii=False)}")


def _pieces(html: str) -> list[str]:
    """The text nodes of a piece of HTML."""
    return [unescape(piece).strip() for piece in re.split(r"<[^>]*>", html) if piece.strip()]


def _component(found: list[str], first: str) -> Any:
    return lambda *args, **given: _Component(found, first, *args, **given)


def _gradio(found: list[str]) -> ModuleType:
    """A gradio that keeps in ``found`` what its components are called."""
    gradio = ModuleType("gradio")
    first = {"Button": "value", "HTML": "value", "Accordion": "label"}

    def of_name(name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _component(found, first.get(name, ""))

    gradio.__getattr__ = of_name  # type: ignore[method-assign]
    return gradio


if __name__ == "__main__":
    if sys.argv[1:] == ["collect"]:
        print(json.dumps(_collected()))
    else:
        main()
