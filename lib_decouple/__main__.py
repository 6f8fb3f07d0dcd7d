"""``python -m lib_decouple``: draw, study and measure without a WebUI."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from . import __version__


def parser() -> argparse.ArgumentParser:
    """All commands and their options."""
    from . import doctor
    from .embedded import place
    from .lab.evaluate import calibrate, imports, judge, pairs, rate, report, table, tell
    from .lab.evaluate import run as run_plan
    from .lab.study import batch, causes, detector, drafts, generate, layers, missing, precision, presence, readers
    from .lab.study.bench import command as bench

    top = argparse.ArgumentParser(prog="python -m lib_decouple", description=__doc__)
    top.add_argument("--version", action="version", version=__version__)
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    generate.add_parser(commands)
    study = commands.add_parser("study", help="missing entities and their causes, on the embedded model")
    studies = study.add_subparsers(dest="study", required=True, metavar="STUDY")
    missing.add_parser(studies)
    causes.add_parser(studies)
    detector.add_parser(studies)
    layers.add_parser(studies)
    precision.add_parser(studies)
    batch.add_parser(studies)
    presence.add_parser(studies)
    drafts.add_parser(studies)
    readers.add_parser(studies)
    bench.add_parser(commands)
    evaluate = commands.add_parser("evaluate", help="judge a run and report on it")
    evaluations = evaluate.add_subparsers(dest="evaluate", required=True, metavar="STEP")
    for step in (run_plan, imports, judge, calibrate, rate, report, pairs, table, tell):
        step.add_parser(evaluations)
    place.add_parser(commands)
    doctor.add_parser(commands)
    return top


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; 0 when it did its work, 2 for a wrong argument, 130 after Ctrl-C."""
    chosen = parser().parse_args(arguments)
    try:
        return int(chosen.run(chosen) or 0)
    except (ValueError, FileNotFoundError, FileExistsError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nstopped; nothing half-written is left", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
