"""Drawings of 24 things, from emoji sets on npm: packed once, read by the scenes.

``python -m lib_decouple.lab.model.sprites`` fetches the packages of :data:`PACKAGES` by their names and draws the
packed file anew (needs npm and ``pip install resvg_py``). Who trains or measures needs the packed file alone. Licences
and authors stand in LICENSE.drawings.txt beside this file.
"""

from __future__ import annotations

import argparse
import io
import json
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

SIDE = 64
"""Side of a drawing in the packed file, pixels."""

ANIMALS = ("cat", "dog", "bird", "bear", "lion", "horse", "elephant", "monkey", "frog", "turtle", "rabbit", "mouse")
OBJECTS = (
    "backpack",
    "glasses",
    "crown",
    "suitcase",
    "chair",
    "balloon",
    "bow",
    "car",
    "bowl",
    "bench",
    "clock",
    "apple",
)
THINGS = ANIMALS + OBJECTS
"""Attend-and-Excite's 12 animals and 12 objects (Chefer et al., 2023)."""

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (225, 40, 40),
    "orange": (250, 140, 25),
    "yellow": (250, 215, 40),
    "green": (50, 165, 65),
    "blue": (45, 95, 225),
    "purple": (135, 60, 190),
    "pink": (250, 140, 190),
    "brown": (135, 80, 40),
    "gray": (140, 140, 145),
    "black": (42, 42, 48),
    "white": (250, 250, 252),
}
"""Attend-and-Excite's 11 colours, RGB in 0..255."""

PACKAGES = {
    "noto": "1.2.9",
    "fluent-emoji-flat": "1.2.6",
    "twemoji": "1.2.5",
    "emojione": "1.2.3",
    "fxemoji": "1.2.2",
    "noto-v1": "1.2.5",
    "streamline-emojis": "1.2.4",
}
"""npm packages ``@iconify-json/NAME`` and their versions, each one JSON file of SVG bodies."""

TAUGHT: dict[str, str] = {
    "cat": "noto:cat noto:cat-face fluent-emoji-flat:cat fluent-emoji-flat:cat-face",
    "dog": "noto:dog noto:dog-face fluent-emoji-flat:dog fluent-emoji-flat:dog-face",
    "bird": "noto:bird fluent-emoji-flat:bird",
    "bear": "noto:bear fluent-emoji-flat:bear noto:teddy-bear",
    "lion": "noto:lion fluent-emoji-flat:lion",
    "horse": "noto:horse noto:horse-face fluent-emoji-flat:horse fluent-emoji-flat:horse-face",
    "elephant": "noto:elephant fluent-emoji-flat:elephant",
    "monkey": "noto:monkey noto:monkey-face fluent-emoji-flat:monkey fluent-emoji-flat:monkey-face",
    "frog": "noto:frog fluent-emoji-flat:frog",
    "turtle": "noto:turtle fluent-emoji-flat:turtle",
    "rabbit": "noto:rabbit noto:rabbit-face fluent-emoji-flat:rabbit fluent-emoji-flat:rabbit-face",
    "mouse": "noto:mouse noto:mouse-face fluent-emoji-flat:mouse fluent-emoji-flat:mouse-face",
    "backpack": "noto:backpack fluent-emoji-flat:backpack",
    "glasses": "noto:glasses fluent-emoji-flat:glasses",
    "crown": "noto:crown fluent-emoji-flat:crown",
    "suitcase": "noto:luggage fluent-emoji-flat:luggage noto:briefcase",
    "chair": "noto:chair fluent-emoji-flat:chair",
    "balloon": "noto:balloon fluent-emoji-flat:balloon",
    "bow": "noto:ribbon fluent-emoji-flat:ribbon",
    "car": "noto:automobile fluent-emoji-flat:automobile",
    "bowl": "noto:bowl-with-spoon fluent-emoji-flat:bowl-with-spoon",
    "bench": "own:bench-front own:bench-side",
    "clock": "noto:mantelpiece-clock noto:alarm-clock fluent-emoji-flat:alarm-clock",
    "apple": "noto:red-apple fluent-emoji-flat:red-apple",
}
"""Thing -> the drawings that scenes for training hold, ``package:name``."""

JUDGED: dict[str, str] = {
    "cat": (
        "emojione:cat emojione:cat-face fxemoji:cat noto-v1:cat noto-v1:cat-face streamline-emojis:cat "
        "streamline-emojis:cat-face"
    ),
    "dog": (
        "emojione:dog emojione:dog-face fxemoji:dog noto-v1:dog noto-v1:dog-face streamline-emojis:dog "
        "streamline-emojis:dog-face"
    ),
    "bird": "emojione:bird noto-v1:bird streamline-emojis:bird-2",
    "bear": "emojione:bear-face fxemoji:bear fluent-emoji-flat:teddy-bear noto-v1:bear streamline-emojis:bear-face",
    "lion": "emojione:lion-face noto-v1:lion streamline-emojis:lion-face",
    "horse": (
        "emojione:horse emojione:horse-face fxemoji:horse fxemoji:horseface noto-v1:horse noto-v1:horse-face "
        "streamline-emojis:horse streamline-emojis:horse-face"
    ),
    "elephant": "emojione:elephant fxemoji:elephant noto-v1:elephant streamline-emojis:elephant",
    "monkey": (
        "emojione:monkey emojione:monkey-face fxemoji:monkey fxemoji:monkeyface noto-v1:monkey "
        "noto-v1:monkey-face streamline-emojis:monkey streamline-emojis:monkey-face"
    ),
    "frog": "emojione:frog-face fxemoji:frog noto-v1:frog streamline-emojis:frog-face",
    "turtle": "emojione:turtle fxemoji:turtle noto-v1:turtle streamline-emojis:turtle",
    "rabbit": (
        "emojione:rabbit emojione:rabbit-face noto-v1:rabbit noto-v1:rabbit-face streamline-emojis:rabbit "
        "streamline-emojis:rabbit-face"
    ),
    "mouse": (
        "emojione:mouse emojione:mouse-face fxemoji:mouseside noto-v1:mouse noto-v1:mouse-face "
        "streamline-emojis:mouse streamline-emojis:mouse-face"
    ),
    "backpack": "emojione:backpack noto-v1:backpack streamline-emojis:school-backpack",
    "glasses": (
        "emojione:glasses fxemoji:glasses noto:sunglasses emojione:sunglasses noto-v1:glasses "
        "streamline-emojis:glasses-1 streamline-emojis:glasses-2"
    ),
    "crown": "emojione:crown fxemoji:crown noto-v1:crown streamline-emojis:crown",
    "suitcase": (
        "emojione:briefcase fxemoji:briefcase fluent-emoji-flat:briefcase noto-v1:briefcase streamline-emojis:briefcase"
    ),
    "chair": "noto:seat emojione:seat noto-v1:seat",
    "balloon": "emojione:balloon fxemoji:balloon noto-v1:balloon streamline-emojis:balloon",
    "bow": "emojione:ribbon fxemoji:bow noto-v1:ribbon streamline-emojis:ribbon",
    "car": (
        "emojione:automobile fxemoji:automobile noto:oncoming-automobile "
        "fluent-emoji-flat:oncoming-automobile noto-v1:automobile noto-v1:oncoming-automobile "
        "streamline-emojis:automobile"
    ),
    "bowl": "noto:steaming-bowl fluent-emoji-flat:steaming-bowl emojione:steaming-bowl noto-v1:steaming-bowl",
    "bench": "own:bench-park",
    "clock": (
        "emojione:alarm-clock fxemoji:alarmclock noto:three-oclock fluent-emoji-flat:mantelpiece-clock "
        "noto-v1:mantelpiece-clock noto-v1:alarm-clock noto-v1:three-oclock"
    ),
    "apple": (
        "emojione:red-apple fxemoji:redapple emojione:green-apple noto:green-apple "
        "fluent-emoji-flat:green-apple noto-v1:red-apple noto-v1:green-apple streamline-emojis:red-apple"
    ),
}
"""Thing -> further drawings that the judge learns from, so that it does not know the taught ones alone."""

HELD_OUT: dict[str, str] = {
    "cat": "twemoji:cat twemoji:cat-face",
    "dog": "twemoji:dog twemoji:dog-face",
    "bird": "twemoji:bird",
    "bear": "twemoji:bear twemoji:teddy-bear",
    "lion": "twemoji:lion",
    "horse": "twemoji:horse twemoji:horse-face",
    "elephant": "twemoji:elephant",
    "monkey": "twemoji:monkey twemoji:monkey-face",
    "frog": "twemoji:frog",
    "turtle": "twemoji:turtle",
    "rabbit": "twemoji:rabbit twemoji:rabbit-face",
    "mouse": "twemoji:mouse twemoji:mouse-face",
    "backpack": "twemoji:backpack",
    "glasses": "twemoji:glasses",
    "crown": "twemoji:crown",
    "suitcase": "twemoji:luggage twemoji:briefcase",
    "chair": "twemoji:chair",
    "balloon": "twemoji:balloon",
    "bow": "twemoji:ribbon",
    "car": "twemoji:automobile",
    "bowl": "twemoji:bowl-with-spoon twemoji:steaming-bowl",
    "bench": "own:bench-plank",
    "clock": "twemoji:mantelpiece-clock twemoji:alarm-clock",
    "apple": "twemoji:red-apple twemoji:green-apple",
}
"""Thing -> drawings that neither the model nor its judge learns from: the judge's test."""

BENCHES: dict[str, str] = {
    "bench-front": """
<path fill="#5d4037" d="M14 66h8v36h-8zM106 66h8v36h-8z"/>
<path fill="#a1683a" d="M8 26h112v12H8zM8 44h112v12H8z"/><path fill="#c98a50" d="M8 26h112v4H8zM8 44h112v4H8z"/>
<path fill="#5d4037" d="M22 20h8v50h-8zM98 20h8v50h-8z"/>
<path fill="#b5763f" d="M2 66h124v14H2z"/><path fill="#d99a5b" d="M2 66h124v5H2z"/>""",
    "bench-side": """
<path fill="#455a64" d="M18 72h9v34h-9zM98 72h9v34h-9zM12 22h8v56h-8zM106 52h8v22h-8zM104 48h18v7h-18z"/>
<path fill="#8d5a2b" d="M14 18h94l10 12H18zM16 36h96l8 12H20z"/><path fill="#b97a43" d="M14 18h94l3 4H15z"/>
<path fill="#a0682f" d="M10 64h108l8 16H14z"/><path fill="#cf9053" d="M10 64h108l3 6H12z"/>""",
    "bench-park": """
<path fill="#37474f" d="M16 34q-8 0-8 10v22h10V46h92v20h10V44q0-10-8-10z"/>
<path fill="#a9713f" d="M20 28h88v9H20zM20 41h88v9H20zM20 54h88v8H20z"/><path fill="#c58a52" d="M6 66h116v10H6z"/>
<path fill="#37474f" d="M14 76h8l-4 30h-9zM106 76h8l5 30h-9z"/>""",
    "bench-plank": """
<path fill="#6d4c41" d="M20 60h10l-6 44H14zM98 60h10l6 44h-10z"/><path fill="#6d4c41" d="M26 78h76v6H26z"/>
<path fill="#b0703a" d="M4 48h120v16H4z"/><path fill="#cc8c50" d="M4 48h120v5H4z"/>
<path fill="#a4662f" d="M10 20h108v14H10z"/><path fill="#6d4c41" d="M20 16h8v36h-8zM100 16h8v36h-8z"/>""",
}
"""No emoji set has a bench: four of our own, SVG bodies of 128 units."""

ROLES: dict[str, dict[str, str]] = {"taught": TAUGHT, "judged": JUDGED, "held out": HELD_OUT}

_HERE = Path(__file__).resolve().parent
PACKED = _HERE / "sprites.webp"
_COLUMNS = 16


@dataclass(frozen=True)
class Sprite:
    """One drawing; ``pixels`` is uint8 RGBA ``[SIDE, SIDE, 4]``."""

    thing: str
    name: str
    role: str
    pixels: np.ndarray


def listed() -> Iterator[tuple[str, str, str]]:
    """Role, thing and name of each drawing, in the packed file's order."""
    for role, drawings in ROLES.items():
        for thing in THINGS:
            for name in drawings[thing].split():
                yield role, thing, name


@cache
def sprites() -> tuple[Sprite, ...]:
    """All drawings, from the packed file."""
    with Image.open(PACKED) as image:
        atlas = np.array(image.convert("RGBA"))
    found = []
    for index, (role, thing, name) in enumerate(listed()):
        y, x = divmod(index, _COLUMNS)
        found.append(Sprite(thing, name, role, atlas[y * SIDE : (y + 1) * SIDE, x * SIDE : (x + 1) * SIDE]))
    return tuple(found)


@cache
def drawings(thing: str, *roles: str) -> tuple[Sprite, ...]:
    """The drawings of one thing in these roles. Raises ValueError for an unknown thing or role."""
    if thing not in THINGS:
        raise ValueError(f"thing: {thing!r} is not drawn here; one of {', '.join(THINGS)}")
    unknown = [role for role in roles if role not in ROLES]
    if unknown:
        raise ValueError(f"role: {unknown[0]!r} is unknown; one of {', '.join(ROLES)}")
    return tuple(sprite for sprite in sprites() if sprite.thing == thing and sprite.role in roles)


def tinted(pixels: np.ndarray, colour: str) -> np.ndarray:
    """A drawing in one of the 11 colours: uint8 RGBA in, the same shape out.

    Its luminance goes from 42 to 100 % of the colour, reached at its median or below; what is brighter than the median
    goes up to half way to white. Raises ValueError
    for an unknown colour.
    """
    if colour not in COLOURS:
        raise ValueError(f"colour: {colour!r} is unknown; one of {', '.join(COLOURS)}")
    alpha = pixels[..., 3]
    light = pixels[..., :3].astype(np.float32) @ np.array([0.299, 0.587, 0.114], np.float32)
    low, middle, high = np.percentile(light[alpha > 127], [3, 50, 97])
    # Flat drawings have their median at the dark end: it must not become their shade.
    low = min(low, middle - 40.0)
    light = np.clip((light - low) / (high - low), 0, 1)[..., None]
    middle = (middle - low) / (high - low)
    base = np.array(COLOURS[colour], np.float32)
    # The larger part of a drawing is to have the colour itself, however dark it was.
    full = min(middle * 0.95, 0.6)
    shaded = base * (0.42 + 0.58 * np.minimum(light / full, 1))
    shine = 0.5 * np.clip((light - middle - 0.05) / max(0.95 - middle, 0.1), 0, 1)
    rgb = shaded * (1 - shine) + 255 * shine
    return np.concatenate([rgb.round().astype(np.uint8), alpha[..., None]], -1)


def _svg(icons: dict[str, Any], name: str) -> str:
    package, icon = name.split(":")
    if package == "own":
        box, body = "0 0 128 128", BENCHES[icon]
    else:
        collection = icons[package]
        entry = collection["icons"][icon]
        width = entry.get("width", collection.get("width", 16))
        height = entry.get("height", collection.get("height", 16))
        box, body = f"{entry.get('left', 0)} {entry.get('top', 0)} {width} {height}", entry["body"]
    names = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
    return f'<svg {names} viewBox="{box}" width="512" height="512">{body}</svg>'


def _fitted(drawing: Image.Image) -> Image.Image:
    """Cut to what is drawn and sized so that its longer side fills the cell."""
    box = drawing.getchannel("A").point(lambda a: 255 if a > 40 else 0).getbbox()
    assert box is not None, "an empty drawing"
    part = drawing.crop(box)
    scale = (SIDE - 2) / max(part.size)
    size = (max(1, round(part.width * scale)), max(1, round(part.height * scale)))
    part = part.resize(size, Image.Resampling.HAMMING)
    cell = Image.new("RGBA", (SIDE, SIDE))
    cell.paste(part, ((SIDE - size[0]) // 2, (SIDE - size[1]) // 2))
    return cell


def fetch(folder: Path) -> None:
    """The packages' ``icons.json``, fetched by name, one folder a package below ``folder``. Raises FileNotFoundError
    without npm, CalledProcessError where it cannot have one."""
    npm = shutil.which("npm")
    if npm is None:
        raise FileNotFoundError("npm is not installed; install it, or give --npm DIR with the unpacked packages")
    for name, version in PACKAGES.items():
        wanted = f"@iconify-json/{name}@{version}"
        command = [npm, "pack", "--silent", "--pack-destination", str(folder), wanted]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        with tarfile.open(folder / f"iconify-json-{name}-{version}.tgz") as whole:
            icons = whole.extractfile("package/icons.json")
            assert icons is not None, f"{name}: icons.json is no file"
            (folder / name).mkdir()
            (folder / name / "icons.json").write_bytes(icons.read())


def pack(npm: Path, target: Path = PACKED) -> None:
    """Draw the packed file from the packages' ``icons.json``, one folder a package below ``npm``."""
    import resvg_py

    icons = {name: json.loads((npm / name / "icons.json").read_text(encoding="utf-8")) for name in PACKAGES}
    names = list(listed())
    atlas = Image.new("RGBA", (_COLUMNS * SIDE, -(-len(names) // _COLUMNS) * SIDE))
    for index, (_, _, name) in enumerate(names):
        png = bytes(resvg_py.svg_to_bytes(svg_string=_svg(icons, name), width=512, height=512))
        y, x = divmod(index, _COLUMNS)
        atlas.paste(_fitted(Image.open(io.BytesIO(png)).convert("RGBA")), (x * SIDE, y * SIDE))
    atlas.save(target, lossless=True, quality=100, method=6)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--npm", type=Path, help="folder with the unpacked packages; else they are fetched")
    parser.add_argument("--out", type=Path, default=PACKED, help="the packed file (the one beside this file)")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as fetched:
        if arguments.npm is None:
            fetch(Path(fetched))
        pack(arguments.npm or Path(fetched), arguments.out)
