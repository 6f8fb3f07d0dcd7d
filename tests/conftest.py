"""Fixtures that every folder of tests shares; they are built in tiny.py."""

from tiny import _sd1_parts, hooks_are_off, sd1, sd2, sdxl

__all__ = ["_sd1_parts", "hooks_are_off", "sd1", "sd2", "sdxl"]
