"""Run by the WebUI before it starts. Installs nothing: the WebUIs ship what is needed; this says what is missing."""

from __future__ import annotations

from importlib import metadata

NEEDED = {"torch": (2, 1), "einops": (0, 4)}


def problems() -> list[str]:
    """What is missing or too old, in words; empty on a current host."""
    found = []
    for name, least in NEEDED.items():
        wanted = ".".join(map(str, least))
        try:
            version = metadata.version(name)
        except metadata.PackageNotFoundError:
            found.append(f"{name} is missing; {wanted} or newer is needed")
            continue
        numbers = tuple(int(part) for part in version.split("+")[0].split(".")[:2] if part.isdigit())
        if numbers < least:
            found.append(f"{name} {version} is too old; {wanted} or newer is needed")
    return found


def skipped() -> bool:
    """Was the host told to install nothing? Then it wants no word about it either."""
    try:
        from modules import shared_cmd_options
    except ImportError:
        return False
    return bool(getattr(shared_cmd_options.cmd_opts, "skip_install", False))


if not skipped():
    for problem in problems():
        print(f"Attention Decoupling: {problem}. Update the WebUI; nothing was installed.")
