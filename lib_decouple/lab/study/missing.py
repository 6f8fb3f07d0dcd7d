"""``study missing``: how often an entity is missing, plain and under each loss, on the embedded model.

A plan that is ready made: every arm draws the same prompts from the same noise, the judge of drawn things looks at
them, and ``results.*`` has them pair by pair. The folder is a run of ``evaluate``: its ``plan.toml`` can be changed and
run, and ``evaluate report`` and the others take it.
"""

from __future__ import annotations

import argparse
import json
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..evaluate import pairs
from ..evaluate import plan as plans
from ..evaluate.arms import MAIN, NAMES
from ..evaluate.fleet import BackendOpener
from ..evaluate.judge import judge_all
from ..evaluate.judges import Options, named
from ..evaluate.pool import workers_of
from ..evaluate.prompts.splits import SPLITS, STEPS
from ..evaluate.run import Invocation, carry_out
from ..evaluate.store import Store

LOG = "images.jsonl"
"""What earlier versions kept of a run."""


def add_parser(commands: Any) -> None:
    """Describe the command's options."""
    parser = commands.add_parser("missing", help="missing rates, paired over arms", description=__doc__)
    parser.add_argument("--n", type=int, default=500, help="paired seeds for each number of entities (500)")
    parser.add_argument("--counts", default="2,3", help="numbers of entities, by comma (2,3)")
    parser.add_argument(
        "--arms", default=",".join(MAIN), help=f"by comma, of {', '.join(NAMES)}; the first is compared with"
    )
    parser.add_argument("--split", choices=SPLITS, default="report", help="which prompts and seeds (report)")
    parser.add_argument(
        "--first-seed", type=int, metavar="N", help="the same prompts from seeds N, N + 1, ... instead of the split's"
    )
    parser.add_argument(
        "--steps", type=int, default=STEPS, help=f"sampling steps; arms guide the same share of them ({STEPS})"
    )
    parser.add_argument("--out", type=Path, default=Path("out/missing"), help="folder of the results (out/missing)")
    parser.add_argument("--jobs", type=int, default=0, help="processes; 0 is one a core")
    parser.add_argument("--batch", type=int, default=25, help="images a pass (25)")
    parser.add_argument(
        "--set", action="append", default=[], metavar="ARM:FIELD=VALUE", help="one more arm, JSON value"
    )
    parser.add_argument("--redo", action="store_true", help="draw again what other settings had drawn into the folder")
    parser.set_defaults(run=run)


def arms_from(names: str, extra: Sequence[str]) -> list[dict[str, Any]]:
    """A plan's arms: those named, and those that ``--set`` builds from one. Raises ValueError by name."""
    chosen: list[dict[str, Any]] = []
    for name in (part.strip() for part in names.split(",")):
        if name not in NAMES:
            raise ValueError(f"arms: {name!r} is not one of {', '.join(NAMES)}")
        chosen.append({"name": name, **({} if name == "plain" else {"tuned": name})})
    for text in extra:
        arm, _, changes = text.partition(":")
        if arm not in NAMES or not changes:
            raise ValueError(f"set: {text!r} is not ARM:FIELD=VALUE[;FIELD=VALUE] with an arm of {', '.join(NAMES)}")
        values = {}
        for change in changes.split(";"):
            field, _, value = change.partition("=")
            try:
                values[field] = json.loads(value)
            except ValueError:
                raise ValueError(f"set: {change!r} is not FIELD=VALUE with a JSON value") from None
        chosen.append({"name": text, "tuned": arm, "settings": values})
    return chosen


def toml(value: Any) -> str:
    """A JSON value in one line of TOML. Raises ValueError for null, which TOML has not."""
    if value is None:
        raise ValueError("set: null is not allowed; leave the field out")
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(key)} = {toml(own)}" for key, own in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(toml, value)) + "]"
    return json.dumps(value, ensure_ascii=False)


def numbers(text: str) -> list[int]:
    """``"2,3"``. Raises ValueError by name."""
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() for part in parts):
        raise ValueError(f"counts: {text!r} is not allowed; numbers of entities by comma, such as 2,3")
    return [int(part) for part in parts]


def plan_of(arguments: argparse.Namespace) -> str:
    """The plan, as `evaluate run` reads it. Raises ValueError by name."""
    if arguments.first_seed is not None and arguments.first_seed < 0:
        raise ValueError(f"first-seed: {arguments.first_seed} is not allowed; 0 or more")
    if arguments.steps < 1:
        raise ValueError(f"steps: {arguments.steps} is not allowed; 1 to 1000")
    if arguments.n < 1:
        raise ValueError(f"n: {arguments.n} is not allowed; 1 or more")
    lines = ["# Made by `study missing`.", "arms = ["]
    lines += [f"    {toml(arm)}," for arm in arms_from(arguments.arms, arguments.set)]
    lines.append("]")
    for count in numbers(arguments.counts):
        lines += [
            "",
            "[[prompts]]",
            f"split = {toml(arguments.split)}",
            f"entities = {count}",
            f"limit = {arguments.n}",
        ]
        if arguments.first_seed is not None:
            lines.append(f"first_seed = {arguments.first_seed}")
    if arguments.steps != STEPS:
        lines += ["", "[sampling]", f"steps = {arguments.steps}"]
    lines += ["", "[backend]", f"batch = {arguments.batch}", f"workers = {workers_of(arguments.jobs)}"]
    return "\n".join(lines) + "\n"


def run(arguments: argparse.Namespace) -> int:
    """Draw what is not drawn yet, judge it, write results.json, results.csv, results.md and results.png."""
    out: Path = arguments.out
    text = plan_of(arguments)
    plan = plans.parsed(plans.tomllib.loads(text))
    jobs = plans.jobs(plan, out)
    if (out / LOG).exists():
        raise ValueError(f"out: {out} holds a run of an earlier version, of a model that is gone; use another --out")
    file = out / "plan.toml"
    command = shlex.join(["python", "-m", "lib_decouple", "evaluate", "run", str(file), "--out", str(out)])
    opener = BackendOpener(plan.backend, plan.sampling, out)
    status = carry_out(plan, jobs, opener, out, Invocation(text, command, arguments.redo, file))
    store = Store(out)
    (judge,), _ = named("drawn", Options())
    judge_all(store, judge, batch=64)
    about = {name: getattr(arguments, name) for name in ("split", "first_seed", "n", "steps")}
    rows = pairs.write(store, out, judge.name, about=about)
    print(
        f"{pairs.as_markdown(rows)}\n{out / 'results.json'}; `python run.py evaluate report {out}` shows its pictures"
    )
    return status
