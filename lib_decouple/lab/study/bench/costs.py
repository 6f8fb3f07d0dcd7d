"""What a step costs in each way: FLOPs, seconds and memory, each way in a process of its own."""

from __future__ import annotations

import json
import multiprocessing
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from ....doctor import forget_peak, resident
from ....settings import Settings
from ...evaluate.files import reopened
from ...evaluate.prompts.splits import Case
from ..late import own_pass
from ..unets import UNetWithInputs
from .arms import Arm, draw
from .counting import count_flops, timed
from .rival import rival_calls, rival_class
from .ways import COSTED, RUN, SAME_ON_SD15, WAYS, GuidanceWay, guide_of, model_to_measure

Record = dict[str, Any]


@dataclass
class Calls:
    """What a way does in a whole step, the CFG call included."""

    guided: Callable[[], object]
    unguided: Callable[[], object]


def calls(way: GuidanceWay, found: UNetWithInputs) -> Calls:
    """The steps of one way."""
    if way.kind == "plain":
        return Calls(found.host, found.host)
    if way.kind == "rival":
        return Calls(*rival_calls(found))
    guide = guide_of(found, way)
    if way.kind == "late":

        def late() -> None:
            own_pass(guide.gradient, found.latents, found.run)
            with torch.no_grad():
                found.run(found.latents, row=0)

        return Calls(late, found.host)

    def guided() -> None:
        # FlopCounterMode cannot follow a leaf that enters the model itself; the hosts scale it before.
        guide.step(found.latents, 0, RUN, lambda x, _: found.run(x * 1))
        found.host()

    return Calls(guided, found.host)


def measure(model: str, name: str, rounds: int) -> Record:
    """Costs of one way on one model: FLOPs, seconds (medians over ``rounds``) and bytes of whole steps."""
    found, way = model_to_measure(model), WAYS[name]
    own = calls(way, found)
    forget_peak()
    before = resident(peak=False)
    own.guided()
    after = resident(peak=True)
    same = own.unguided == found.host
    spent: dict[str, list[float]] = {"plain": [], "guided": [], "unguided": []}
    bodies = {"plain": found.host, "guided": own.guided, "unguided": own.unguided}
    for _ in range(rounds):
        for key, body in bodies.items():
            spent[key].append(spent["plain"][-1] if key == "unguided" and same else timed(body))
    flops = {key: count_flops(body) for key, body in bodies.items() if not (key == "unguided" and same)}
    if same:
        flops["unguided"] = flops["plain"]
    record: Record = {
        "model": model,
        "way": name,
        "flops": flops,
        "seconds": {key: statistics.median(values) for key, values in spent.items()},
        "memory": None if before is None or after is None else max(0, after - before),
        "last": guide_of(found, way).gradient.reader.layers[-1].name if way.kind in ("guide", "late") else "",
        "threads": torch.get_num_threads(),
    }
    if found.pipe is not None and way.kind != "whole":
        record["whole"] = measure_whole(found.pipe, name)
    return record


def measure_whole(pipe: Any, name: str, rounds: int = 5) -> Record:
    """Whole generations of one image at :data:`RUN` steps beside plain ones: median seconds and ratio, passes."""
    arm = Arm(Settings() if name == "plain" else COSTED, name)
    group = (Case(("cat", "dog"), 1),)
    steps = RUN
    draw(pipe, arm, group, steps)
    pairs, drawn = [], None
    for _ in range(rounds):
        plain = timed(lambda: draw(pipe, Arm(Settings(), "plain"), group, steps))
        started = time.perf_counter()
        drawn = draw(pipe, arm, group, steps)
        pairs.append((plain, time.perf_counter() - started))
    assert drawn is not None
    return {
        "seconds": statistics.median(own for _, own in pairs),
        "ratio": statistics.median(own / plain for plain, own in pairs),
        "passes": drawn.passes[0],
        "gradients": drawn.gradients[0],
    }


def apart(body: Callable[..., Record], *arguments: Any) -> Record:
    """``body``'s result from a fresh process. Raises RuntimeError when that ends without one."""
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_send, args=(sender, body, arguments), daemon=True)
    process.start()
    sender.close()
    try:
        return receiver.recv()
    except EOFError:
        process.join()
        raise RuntimeError(f"the process ended with code {process.exitcode}") from None
    finally:
        process.terminate()
        process.join()


def _send(sender: Any, body: Callable[..., Record], arguments: Sequence[Any]) -> None:
    try:
        sender.send(body(*arguments))
    except KeyboardInterrupt:
        sys.exit(130)


def measure_costs(log: Path, models: Sequence[str]) -> list[Record]:
    """All records of ``log``, those of ``models`` added that it lacks."""
    costs = reopened(log)
    done = {(cost["model"], cost["way"]) for cost in costs}
    ways = [
        (model, name)
        for model in models
        for name, way in WAYS.items()
        if (model, name) not in done
        and not (way.kind == "rival" and rival_class() is None)
        and not (model == "sd15" and name in SAME_ON_SD15)
    ]
    with log.open("a", encoding="utf-8") as file, tqdm(ways, unit="way", disable=not ways) as bar:
        for model, name in bar:
            bar.set_description(f"{model}: {name}")
            try:
                cost = apart(measure, model, name, 20 if model == "embedded" else 2)
            except RuntimeError as error:
                bar.write(f"{model}: {name}: {error}; left out")
                continue
            file.write(json.dumps(cost) + "\n")
            file.flush()
            costs.append(cost)
    order = list(WAYS)
    return sorted(costs, key=lambda cost: order.index(cost["way"]))
