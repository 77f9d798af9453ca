"""The rows of a step: time, throughput, memory, waits of the host; by the engine beside a plain loop; its kernels."""

import time
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from statistics import median
from typing import Any
from unittest.mock import patch

from gpus.batches import kinds
from gpus.cases import CASES
from gpus.measuring import Meter, in_window
from gpus.operations import shares
from gpus.parts import Row, Setting
from gpus.steps import EngineSteps, Steps, steps_here
from scanfoundry.pretrain.engine import acceleration

WARM_UP, WINDOWS = 4, 5


def each_kind(name: str, setting: Setting, row_of: Callable[[str, Row, Meter], Row]) -> Row:
    """The row of a case, or where it has images and volumes one for each: '2d', '3d'.

    Args:
        name: of the case.
        setting: where it runs.
        row_of: measures one kind; takes the case's name, what is known of the row, and the meter.
    """
    meter, rows = Meter(setting.where), Row()
    for kind, crop, count in kinds(CASES[name], setting):
        known = {"crop": list(crop), "batch": count, "gib_before": meter.clean()}
        with traced_alone(setting.small):
            rows[kind] = known | row_of(name, known, meter)
    meter.clean()
    return rows if len(rows) > 1 else next(iter(rows.values()))


def traced_alone(small: bool) -> Any:
    """Where all is small, torch.compile traces and makes no kernels, which would take minutes."""
    if not small:
        return nullcontext()
    return patch.object(acceleration, "compile_blocks", partial(acceleration.compile_blocks, backend="eager"))


def step_row(name: str, setting: Setting) -> Row:
    """The steps of a case."""
    return each_kind(name, setting, partial(_measured, setting))


def _measured(setting: Setting, name: str, known: Row, meter: Meter) -> Row:
    steps = steps_here()(CASES[name], setting, tuple(known["crop"]), known["batch"])
    row: Row = {"how": steps.how, "warm_up_s": round(meter.seconds(partial(steps.run, warm_up(setting))), 1)}
    meter.clean()
    count = 1 if setting.small else in_window(meter.seconds(partial(steps.run, 1)))
    times = [meter.seconds(partial(steps.run, count)) / count for _ in range(1 if setting.small else WINDOWS)]
    middle = median(times)
    row |= {"steps": count * len(times), "ms": ms(middle), "ms_least": ms(min(times)), "ms_most": ms(max(times))}
    row |= {"samples_per_s": round(known["batch"] / middle, 2), "host_ms": ms(host_seconds(steps, meter))}
    row |= meter.peaks()
    row["waits"] = meter.waits(steps.launch)
    meter.wait()
    row["parameters"] = sum(each.numel() for each in steps.objective.parameters() if each.requires_grad)
    row["loss"] = [round(steps.losses[0], 4), round(steps.losses[-1], 4)]
    return row | shares(steps.config, name, known, middle, setting)


def warm_up(setting: Setting) -> int:
    """Steps before any is timed: kernels are chosen, memory is taken, code is compiled."""
    return 1 if setting.small else WARM_UP


def host_seconds(steps: Steps, meter: Meter) -> float:
    """That the host takes to queue a step while the device has nothing else to do."""
    meter.wait()
    began = time.perf_counter()
    steps.launch()
    taken = time.perf_counter() - began
    meter.wait()
    return taken


def overhead(name: str, setting: Setting) -> Row:
    """Steps of a case by the engine and by a plain loop, from the same weights, in turns."""
    return each_kind(name, setting, partial(_beside_plain, setting))


def _beside_plain(setting: Setting, name: str, known: Row, meter: Meter) -> Row:
    sides = [kind(CASES[name], setting, tuple(known["crop"]), known["batch"]) for kind in (EngineSteps, Steps)]
    for side in sides:
        side.run(warm_up(setting))
    count = 1 if setting.small else in_window(meter.seconds(partial(sides[0].run, 1)))
    times: list[list[float]] = [[], []]
    for turn in range(1 if setting.small else WINDOWS):
        for number in (0, 1) if turn % 2 else (1, 0):
            times[number].append(meter.seconds(partial(sides[number].run, count)) / count)
    ratio = median(engine / plain for engine, plain in zip(*times, strict=True))
    apart = max(abs(one - other) / abs(other) for one, other in zip(*(side.losses for side in sides), strict=False))
    row: Row = {"engine_ms": ms(median(times[0])), "plain_ms": ms(median(times[1])), "ratio": round(ratio, 3)}
    return row | {"losses_apart": apart}


def ms(seconds: float) -> float:
    """Milliseconds."""
    return round(1e3 * seconds, 2)
