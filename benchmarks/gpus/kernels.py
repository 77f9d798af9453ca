"""Which kernels a step spends its time on, by torch's profiler."""

from collections import Counter
from collections.abc import Iterable
from functools import partial
from typing import Any

from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from gpus.cases import CASES
from gpus.measuring import Meter
from gpus.parts import Row, Setting
from gpus.step_rows import each_kind, ms, warm_up
from gpus.steps import steps_here

STEPS, SHOWN, LONGEST_NAME = 3, 12, 90


def kernels_row(name: str, setting: Setting) -> Row:
    """The kernels of a case's step; on a CPU the operations of torch in their place."""
    return each_kind(name, setting, partial(_traced, setting))


def _traced(setting: Setting, name: str, known: Row, meter: Meter) -> Row:
    steps = steps_here()(CASES[name], setting, tuple(known["crop"]), known["batch"])
    steps.run(warm_up(setting))
    cuda, count = setting.device == "cuda", 1 if setting.small else STEPS
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]
    meter.wait()
    with profile(activities=activities) as traced:
        seconds = meter.seconds(partial(steps.run, count))
    return summary(traced.events() or [], count, seconds, cuda)


def summary(events: Iterable[Any], steps: int, seconds: float, cuda: bool) -> Row:
    """Kernels of a step: how many, the longest ones together, and the share of the time in which one ran.

    Args:
        events: of torch's profiler.
        steps: that were traced.
        seconds: that they took.
        cuda: count what ran on the GPU and not what torch called.
    """
    total, times, spans = 0, Counter[str](), list[tuple[float, float]]()
    for event in events:
        if (event.device_type == DeviceType.CUDA) != cuda or getattr(event, "is_user_annotation", False):
            continue
        total += 1
        times[event.name[:LONGEST_NAME]] += event.time_range.elapsed_us() if cuda else event.self_cpu_time_total
        spans.append((event.time_range.start, event.time_range.end))
    return {
        "traced_ms": ms(seconds / steps),
        "kernels": round(total / steps),
        "busy": round(covered(spans) / 1e6 / seconds, 3),
        "longest": {name: ms(us / 1e6 / steps) for name, us in times.most_common(SHOWN)},
    }


def covered(spans: list[tuple[float, float]]) -> float:
    """The length of the union of spans."""
    length, reached = 0.0, float("-inf")
    for start, end in sorted(spans):
        length += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return length
