"""Named settings: built in, a user's own (one JSON file each), and as a text to pass on.

A file holds ``{"format", "version", "name", "reason", "settings"}``; ``settings`` any subset of the fields
but ``enabled``. The text is ``DECOUPLE1``, the same JSON compressed in base 32 behind a checksum, and ``0``:
letters and digits alone, of either case, so that a chat's formatting, wrapping and quoting don't harm it.
"""

from __future__ import annotations

import base64
import difflib
import hashlib
import json
import os
import re
import secrets
import unicodedata
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from .settings import FIXED, VERSION, Settings

FORMAT = "attention-decoupling preset"
MOST_BYTES = 64 * 1024
"""Of a preset as JSON."""
MOST_NAME_BYTES = 120
MOST_REASON = 500
"""Characters."""

_OPENING = "DECOUPLE1"
_SUFFIX = ".json"
_RESERVED = re.compile(r"(?:con|prn|aux|nul|conin|conout|com[0-9¹²³]|lpt[0-9¹²³])(?:\..*)?", re.I)
_SIGNS = " -_.,+()'&"


class UnknownPreset(ValueError):
    """No preset has this name."""


class PresetExists(ValueError):
    """A preset of this name is there already."""


@dataclass(frozen=True)
class Preset:
    """Settings with a name and the reason for them. Raises ValueError that names what is wrong."""

    name: str
    reason: str
    settings: dict[str, Any] = field(hash=False)
    """Plain JSON; fields that are left out have their defaults."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "name", checked_name(self.name))
        if not isinstance(self.reason, str) or len(self.reason) > MOST_REASON or not _is_plain(self.reason):
            raise ValueError(f"reason: a text of at most {MOST_REASON} characters, without control characters")
        if not isinstance(self.settings, Mapping):
            raise ValueError("settings: an object of fields and values is needed")
        if "enabled" in self.settings:
            raise ValueError("enabled: is no part of a preset; whoever applies it turns guidance on")
        values = Settings.from_dict(self.settings).as_dict()
        object.__setattr__(self, "settings", {name: values[name] for name in self.settings})
        try:
            size = len(to_json(self))
        except UnicodeEncodeError:
            raise ValueError("settings: a text with half a character (a lone surrogate) is not allowed") from None
        if size > MOST_BYTES:
            raise ValueError(f"settings: {size} bytes as JSON are not allowed; at most {MOST_BYTES}")

    def applied_to(self, settings: Settings) -> Settings:
        """``settings`` as they are after this: what it leaves out has its default, but whether guidance is on
        stays, and so do the entities where it has none."""
        own = {} if "entities" in self.settings else {"entities": settings.entities}
        return self.with_overrides(enabled=settings.enabled, **own)

    def with_overrides(self, /, **values: Any) -> Settings:
        """The preset's settings, turned on, with ``values`` over them. Raises ValueError as Settings does."""
        return Settings.from_dict({**self.settings, "enabled": True, **values})


def checked_name(name: Any) -> str:
    """``name`` in composed form. Raises ValueError where it can't be a file's name on every system."""
    if not isinstance(name, str):
        raise ValueError(f"name: {name!r} is not allowed; a text")
    composed = unicodedata.normalize("NFC", name)
    shown = name if len(name) <= 80 else name[:80] + "…"
    bad = next((c for c in composed if unicodedata.category(c)[0] not in "LMN" and c not in _SIGNS), None)
    if bad is not None:
        raise ValueError(f"name: {shown!r} is not allowed; letters, digits, spaces and {_SIGNS.strip()}, not {bad!r}")
    if not composed or composed != composed.strip(" .") or unicodedata.category(composed[0])[0] == "M":
        raise ValueError(f"name: {shown!r} is not allowed; not empty, no space or dot at either end")
    if len(composed.encode()) > MOST_NAME_BYTES:
        raise ValueError(f"name: {shown!r} is not allowed; at most {MOST_NAME_BYTES} bytes")
    if _RESERVED.fullmatch(composed):
        raise ValueError(f"name: {shown!r} is not allowed; Windows keeps this name for a device")
    return composed


def to_json(preset: Preset) -> bytes:
    """The file's content."""
    whole = {"format": FORMAT, "version": VERSION, "name": preset.name, "reason": preset.reason}
    return json.dumps({**whole, "settings": preset.settings}, ensure_ascii=False, indent=2).encode()


def _is_plain(text: str) -> bool:
    return all(unicodedata.category(char) not in ("Cc", "Cs") for char in text)


BUILT_IN: tuple[Preset, ...] = (
    Preset(
        "Auto",
        "Loss, step and window are those of the loaded model's profile. The status line says which, where they come "
        "from, and whether they were measured on such a model.",
        {},
    ),
    Preset(
        "Balanced",
        "Intensity with some CoM. Of 60 pairs on the small model that ships 3 lack a thing (plain 12, CoM 4) and 18 "
        "show something extra (26 and 16; docs/results/trials.md); of 1104 pictures, with a larger step and another "
        "window, 21 % (31 and 17) and 32 % (53 and 36). On no large model was it measured.",
        {**FIXED, "loss": "intensity + 0.3*com"},
    ),
    Preset(
        "Paper exact",
        "As near to arXiv 2410.20972 as is known here: an overlap loss (IoU), stepped as in Attend-and-Excite, "
        "with its map treatment, in the first half of the steps. The paper's own step sizes, thresholds and "
        "choice of maps are not known to us.",
        {**FIXED, "loss": "iou", "rule": "attend-excite", "size": 20.0, "treatment": "attend-excite"},
    ),
    Preset(
        "Fast",
        "Every second step of the first half, so half the extra passes. How much of the effect that keeps is "
        "not measured.",
        {**FIXED, "loss": "intensity + 0.3*com", "every": 2},
    ),
    Preset(
        "Stubborn",
        "For prompts that keep losing an entity: larger steps, repeated up to five times at three early steps. "
        "Slow, and may pull the picture apart. Of 60 pairs on the small model that ships 6 lack a thing (plain 12, "
        "CoM 4), 10 show something extra (26, 16) and 48 are exactly right (32, 42; docs/results/trials.md).",
        {
            **FIXED,
            "loss": "intensity + 0.3*com",
            "size": 0.4,
            "refine_steps": [0, 5, 10],
            "refine_threshold": 0.0,
            "refine_rounds": 5,
        },
    ),
    Preset(
        "Gentle",
        "For pictures that come out pulled apart: CoM alone, which added no objects on this project's first small "
        "model (docs/results/decouple-tiny), at a third of the default step. The step is not measured on large models.",
        {**FIXED, "size": 0.05},
    ),
    Preset(
        "Attend-and-Excite",
        "The rival, for comparison (arXiv 2301.13826): weakest entity, factor 20, its map treatment, repeating at "
        "steps 10 and 20 until attention 0.5. Its own code repeats at step 0, too, and its thresholds rise "
        "(0.05, 0.5, 0.8); here one stands for all.",
        {
            **FIXED,
            "loss": "intensity",
            "rule": "attend-excite",
            "size": 20.0,
            "treatment": "attend-excite",
            "refine_steps": [10, 20],
            "refine_threshold": 0.5,
            "refine_rounds": 20,
        },
    ),
    Preset(
        "Low memory",
        "Balanced with most blocks computed twice instead of kept, and one image at a time: less memory, more time. "
        "How much less depends on the model.",
        {**FIXED, "loss": "intensity + 0.3*com", "recompute": "on", "one_at_a_time": True},
    ),
    Preset(
        "Insist",
        "Drafts up to eight seeds until one is surely whole, guides as Auto does, and begins a picture again, twice at "
        "most, that lacks something midway. Of 60 pairs on the small model that ships 5 lack a thing (plain 12, guided "
        "alone 4) and 43 are exactly right (32, 42; docs/results/trials.md). A model of which nothing was learned has "
        "the best of eight drafts drawn.",
        {"look": "insist", "drafts": 8, "restarts": 2},
    ),
)


def is_built_in(name: str) -> bool:
    """Is this a built-in preset's name?"""
    return any(_same(one.name) == _same(name) for one in BUILT_IN)


def available(folder: Path | None) -> list[Preset]:
    """The built-in presets, then the readable ones of ``folder`` by name."""
    found = list(BUILT_IN)
    for path in _files(folder):
        try:
            preset = _read(path)
        except (OSError, ValueError):
            continue  # `problems` tells
        found.append(preset)
    return found


def problems(folder: Path | None) -> list[str]:
    """What is wrong with those files of ``folder`` that can't be read, one line each."""
    found = []
    for path in _files(folder):
        try:
            _read(path)
        except (OSError, ValueError) as error:
            found.append(f"{path.name}: {error}")
    return found


def load(name: str, folder: Path | None = None) -> Preset:
    """The preset called ``name``; case doesn't count. Raises UnknownPreset that names a near one, and
    ValueError where its file is broken."""
    if not isinstance(name, str):
        raise UnknownPreset(f"preset: {name!r} is not allowed; a name")
    wanted = _same(name)
    for preset in BUILT_IN:
        if _same(preset.name) == wanted:
            return preset
    for path in _files(folder):
        if _same(path.name.removesuffix(_SUFFIX)) == wanted:
            try:
                return _read(path)
            except OSError as error:
                raise ValueError(f"preset: {path.name} can't be read: {error.strerror}") from None
    names = [preset.name for preset in available(folder)]
    near = difflib.get_close_matches(wanted, [_same(one) for one in names], 1)
    hint = next((f" (did you mean {one}?)" for one in names if near and _same(one) == near[0]), "")
    raise UnknownPreset(f"preset: there is no {name[:80]!r}{hint}; there are {', '.join(names)}")


def save(preset: Preset, folder: Path, overwrite: bool = False) -> Path:
    """Write ``preset`` into ``folder``, whole or not at all; gives its file.

    Raises PresetExists unless ``overwrite``, always so for a built-in's name, and OSError where the disk fails.
    """
    if is_built_in(preset.name):
        raise PresetExists(f"name: {preset.name!r} is built in; choose another")
    folder.mkdir(parents=True, exist_ok=True)
    there = _path_of(preset.name, folder)
    if there is not None and not overwrite:
        raise PresetExists(f"name: there is a preset {there.name.removesuffix(_SUFFIX)!r} already")
    path = there or folder / f"{preset.name}{_SUFFIX}"
    temporary = folder / f".preset-{secrets.token_hex(8)}.tmp"
    try:
        with open(temporary, "xb") as file:  # with the mode that the umask gives, as every file of the WebUI
            file.write(to_json(preset))
            file.flush()
            os.fsync(file.fileno())
        if overwrite:
            os.replace(temporary, path)  # of a link the link, never its target
        else:
            _rename_new(temporary, path)
    except FileExistsError:
        raise PresetExists(f"name: there is a file {path.name!r} already") from None
    finally:
        temporary.unlink(missing_ok=True)
    return path


def _rename_new(source: Path, target: Path) -> None:
    """Rename, or FileExistsError; nothing can come between looking and renaming where links exist."""
    try:
        os.link(source, target)
    except FileExistsError:
        raise
    except OSError:  # a file system without links
        if os.path.lexists(target):
            raise FileExistsError(target) from None
        os.replace(source, target)


def delete(name: str, folder: Path) -> None:
    """Delete a user's preset. Raises UnknownPreset, and PresetExists for a built-in one."""
    if is_built_in(name):
        raise PresetExists(f"preset: {name!r} is built in and can't be deleted")
    path = _path_of(name, folder)
    if path is None:
        raise UnknownPreset(f"preset: there is no {name[:80]!r} of your own")
    path.unlink()


def from_json(data: bytes) -> Preset:
    """A preset from a file's content. Raises ValueError that names what is wrong."""
    try:
        return _from_json(data)
    except RecursionError:
        raise ValueError("preset: nested too deeply") from None


def _from_json(data: bytes) -> Preset:
    if len(data) > MOST_BYTES:
        raise ValueError(f"preset: larger than {MOST_BYTES} bytes")
    try:
        whole = json.loads(data.decode("utf-8-sig"), parse_constant=_no_constant, object_pairs_hook=_once)
    except UnicodeDecodeError:
        raise ValueError("preset: not UTF-8") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"preset: not JSON: {error}") from None
    if not isinstance(whole, dict) or whole.get("format") != FORMAT:
        raise ValueError(f'preset: not one of Attention Decoupling; "format" has to be "{FORMAT}"')
    version = whole.get("version")
    if type(version) is not int or not 1 <= version <= VERSION:
        raise ValueError(f"version: {version!r} is not known here; this extension reads 1 to {VERSION}")
    wanted = {"format", "version", "name", "reason", "settings"}
    if set(whole) != wanted:
        wrong = sorted(set(whole) ^ wanted)
        raise ValueError(f"preset: fields missing or unknown: {', '.join(wrong)[:200]}")
    settings = whole["settings"]
    if version == 1 and isinstance(settings, dict):
        settings = {**FIXED, **settings}
    return Preset(whole["name"], whole["reason"], settings)


def to_text(preset: Preset) -> str:
    """A short text that a chat message can carry."""
    whole = {"format": FORMAT, "version": VERSION, "name": preset.name, "reason": preset.reason}
    data = json.dumps({**whole, "settings": preset.settings}, ensure_ascii=False, separators=(",", ":")).encode()
    packed = hashlib.sha256(data).digest()[:4] + zlib.compress(data, 9)
    return _OPENING + base64.b32encode(packed).decode().rstrip("=") + "0"


def from_text(message: str) -> Preset:
    """The preset that ``message`` holds somewhere, as :func:`to_text` wrote it or as a file's content.

    Raises ValueError that names what is wrong.
    """
    if len(message) > 2 * MOST_BYTES:
        raise ValueError(f"preset: longer than {2 * MOST_BYTES} characters")
    if message.lstrip("\ufeff \t\r\n").startswith("{"):
        return from_json(message.strip().encode("utf-8", "replace"))
    letters = re.sub(r"[^A-Za-z0-9]", "", message).upper()
    found = re.search(_OPENING + "([A-Z2-7]+)0", letters)
    if found is None:
        raise ValueError(f"preset: no preset in this text; one begins with {_OPENING} and ends with 0")
    try:
        packed = base64.b32decode(found[1] + "=" * (-len(found[1]) % 8))
        data = zlib.decompressobj().decompress(packed[4:], MOST_BYTES + 1)
    except (ValueError, zlib.error):
        packed = data = b""
    if hashlib.sha256(data).digest()[:4] != packed[:4]:
        raise ValueError("preset: the text is damaged or incomplete; copy all of it")
    return from_json(data)


def differences(before: Settings, after: Settings) -> dict[str, tuple[Any, Any]]:
    """Field -> its value before and after, of those that change; plain JSON."""
    old, new = before.as_dict(), after.as_dict()
    return {name: (old[name], new[name]) for name in old if old[name] != new[name]}


@dataclass(frozen=True)
class Preview:
    """What an import would do."""

    preset: Preset
    changes: dict[str, tuple[Any, Any]] = field(hash=False)
    """Of the settings that it would be applied to."""
    taken: Literal["", "yours", "built in"]
    """Whose preset has this name already."""
    replaces: dict[str, tuple[Any, Any]] = field(hash=False)
    """What saving it would change of the user's own preset of this name."""
    identical: bool = False
    """The preset of this name has the same settings, and if it is the user's, the same reason."""


def preview(message: str, settings: Settings, folder: Path | None) -> Preview:
    """What importing ``message`` (see :func:`from_text`) would change; nothing is. Raises ValueError."""
    preset = from_text(message)
    changes = differences(settings, preset.applied_to(settings))
    try:
        there = load(preset.name, folder)
    except UnknownPreset:
        return Preview(preset, changes, "", {})
    except ValueError:  # a file that holds no preset
        return Preview(preset, changes, "yours", {})
    replaces = differences(there.with_overrides(), preset.with_overrides())
    same = not replaces and ("entities" in there.settings) == ("entities" in preset.settings)
    if is_built_in(preset.name):
        return Preview(preset, changes, "built in", {}, same)
    alike = (there.name, there.reason) == (preset.name, preset.reason)
    return Preview(preset, changes, "yours", replaces, same and alike)


def matching(settings: Settings, folder: Path | None = None) -> str:
    """The name of the first preset that would change nothing of ``settings``; "" where there is none."""
    return next((one.name for one in available(folder) if one.applied_to(settings) == settings), "")


def _files(folder: Path | None) -> list[Path]:
    """Regular files of the folder itself; links are none."""
    if folder is None:
        return []
    try:
        with os.scandir(folder) as entries:
            found = [
                Path(entry.path)
                for entry in entries
                if entry.name.endswith(_SUFFIX) and entry.is_file(follow_symlinks=False)
            ]
    except (OSError, ValueError):  # of a path that no system knows, ValueError
        return []
    return sorted(found, key=lambda path: _same(path.name))


def _path_of(name: str, folder: Path) -> Path | None:
    wanted = _same(name)
    return next((path for path in _files(folder) if _same(path.name.removesuffix(_SUFFIX)) == wanted), None)


def _read(path: Path) -> Preset:
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0))
    with os.fdopen(descriptor, "rb") as file:
        preset = from_json(file.read(MOST_BYTES + 1))
    if _same(preset.name) != _same(path.name.removesuffix(_SUFFIX)):
        raise ValueError(f"name: {preset.name!r} is in a file of another name")
    if is_built_in(preset.name):
        raise ValueError(f"name: {preset.name!r} is a built-in preset's")
    return preset


def _same(name: str) -> str:
    """Equal for names that some file system takes for one."""
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", name).casefold())


def _no_constant(name: str) -> float:
    raise ValueError(f"preset: {name} is no JSON")


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("preset: a field stands twice")
    return found
