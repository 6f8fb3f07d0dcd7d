"""The arms of the studies: plain, each loss at its own measured settings, and the rival."""

from __future__ import annotations

from ..settings import Settings

ARMS: dict[str, Settings] = {
    "plain": Settings(),
    "iou": Settings(enabled=True, loss="iou"),
    "com": Settings(enabled=True, loss="com"),
    "kl": Settings(enabled=True, loss="kl"),
    "cc": Settings(enabled=True, loss="cc"),
    "intensity": Settings(enabled=True, loss="intensity"),
    "spread": Settings(enabled=True, loss="spread"),
    "attend-excite": Settings(
        enabled=True, loss="intensity", rule="attend-excite", size=20.0, treatment="attend-excite"
    ),
}
"""Name -> settings."""
