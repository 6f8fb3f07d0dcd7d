"""The house: imports run downward only, and what is public says what it does."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "lib_decouple"
MODULES = sorted(path.relative_to(ROOT) for path in PACKAGE.rglob("*.py"))

# What each part may import of our own package. A name that ends with a dot stands for a whole part.
ALLOWED = {
    "core": {"core"},
    "prompt": {"prompt"},
    "settings": {"core", "prompt"},
    "profiles": {"core", "prompt", "settings"},
    "presets": {"core", "prompt", "settings"},
    "hosts": {"core", "prompt", "settings", "profiles", "embedded", "hosts"},
    "doctor": {"core", "prompt", "settings", "profiles", "hosts", "__version__"},
    "embedded": {"embedded"},
    "webui": {
        "webui",
        "embedded",
        "core",
        "prompt",
        "settings",
        "profiles",
        "presets",
        "hosts",
        "doctor",
        "__version__",
    },
    "lab": {"doctor", "lab", "embedded", "core", "prompt", "settings", "profiles", "presets", "hosts", "__version__"},
}
# What else they may import beyond the standard library.
OUTSIDE = {"core": {"torch", "einops"}, "prompt": set(), "settings": set(), "profiles": set(), "presets": set()}
WEBUI_ONLY = {"gradio", "modules", "modules_forge", "fastapi"}


def part(module: str) -> str:
    """``lib_decouple.core.maps`` -> ``core``; ``lib_decouple`` itself -> ``""``."""
    return [*module.split("."), ""][1]


def dotted(path: Path) -> str:
    return ".".join(path.with_suffix("").parts).removesuffix(".__init__")


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """Line and absolute dotted name of everything a file imports, at any depth."""
    package = path.parts[:-1]
    for node in ast.walk(ast.parse((ROOT / path).read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            for name in node.names:
                yield node.lineno, name.name
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            origin = ".".join(filter(None, [base, node.module]))
            for name in node.names:
                yield node.lineno, f"{origin}.{name.name}"


def test_there_are_modules() -> None:
    assert {"core", "hosts", "prompt"} <= {part(dotted(path)) for path in MODULES}


@pytest.mark.parametrize("path", MODULES, ids=str)
def test_imports_run_downward_only(path: Path) -> None:
    own = part(dotted(path))
    if own in ("", "__main__"):  # the top may use everything
        return
    assert own in ALLOWED, f"{path}: say in this test what lib_decouple.{own} stands on"
    for line, name in imports(path):
        top = name.split(".")[0]
        if top == "lib_decouple":
            assert part(name) in ALLOWED[own], f"{path}:{line} imports {name}, which does not stand below {own}"
        elif own in OUTSIDE:
            assert top in sys.stdlib_module_names | OUTSIDE[own], f"{path}:{line}: {own} may not import {top}"
        if own != "webui":
            seams = (
                WEBUI_ONLY
                if own != "hosts"
                or path.stem not in ("a1111", "drafting", "forge", "insisting", "previews", "sampling")
                else {"gradio"}
            )
            assert top not in seams, f"{path}:{line}: only webui may import {top}"


# What each part of the laboratory may import of the others.
LAB = {"model": {"model"}, "evaluate": {"evaluate", "model"}, "study": {"study", "evaluate", "model"}}


def test_the_laboratory_imports_downward_too() -> None:
    for path in MODULES:
        if part(dotted(path)) == "lab" and len(path.parts) > 3:
            known = {name.split(".")[2] for _, name in imports(path) if name.startswith("lib_decouple.lab.")}
            assert known <= LAB[path.parts[2]], f"{path} imports {known - LAB[path.parts[2]]}"


def test_hosts_do_not_know_each_other() -> None:
    shared = {
        "anima",
        "base",
        "borrowed",
        "bystanders",
        "checkpoints",
        "curves",
        "denoisers",
        "detect",
        "family",
        "features",
        "ldm",
        "ordinary",
        "reasons",
        "seeds",
        "tell",
    }
    shared |= {"sampling", "drafting", "insisting", "previews"}
    shared |= {"diffusers_drafts", "diffusers_loop", "diffusers_prompts"}
    for path in MODULES:
        if part(dotted(path)) == "hosts" and path.stem != "__init__":
            known = {name.split(".")[2] for _, name in imports(path) if name.startswith("lib_decouple.hosts.")}
            assert known <= shared | {path.stem}, f"{path} imports {known - shared}"


def test_core_imports_without_any_host() -> None:
    """A fresh interpreter that loads all of core has loaded no host, UI or model library."""
    import subprocess

    names = [dotted(path) for path in MODULES if part(dotted(path)) == "core"]
    code = f"import sys, {', '.join(names)}; print(*sorted({{m.split('.')[0] for m in sys.modules}}))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert "torch" in loaded
    assert not loaded & {"diffusers", "transformers", "gradio", "modules", "ldm", "k_diffusion"}


CORE = [path for path in MODULES if part(dotted(path)) == "core"]


@pytest.mark.parametrize("path", CORE, ids=str)
def test_public_things_of_core_have_docstrings(path: Path) -> None:
    tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
    assert ast.get_docstring(tree), f"{path}: no docstring"

    def undocumented(body: list[ast.stmt], prefix: str) -> Iterator[str]:
        for node in body:
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_"):
                if not ast.get_docstring(node):
                    yield prefix + node.name
                if isinstance(node, ast.ClassDef):
                    yield from undocumented(node.body, f"{prefix}{node.name}.")

    assert list(undocumented(tree.body, "")) == []
