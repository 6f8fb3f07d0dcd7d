"""Command-line options, read by the WebUI before it loads its extensions."""

from __future__ import annotations

from argparse import ArgumentParser


def preload(parser: ArgumentParser) -> None:
    """Add ours to the host's parser."""
    parser.add_argument(
        "--decouple-debug",
        action="store_true",
        help="Attention Decoupling: log every failure with its traceback, and hold the first gradient of each job "
        "against finite differences",
    )
