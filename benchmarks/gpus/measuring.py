"""Time, memory and waits of a device."""

import gc
import time
import warnings
from collections.abc import Callable
from functools import cache
from statistics import median

import torch

SYNC = "called a synchronizing CUDA operation"  # torch's warning, in set_sync_debug_mode("warn")
WINDOW_S, MOST_IN_WINDOW = 0.6, 30  # of steps that are timed together
GIB = 2**30


class Meter:
    """What is asked of a device; on a CPU there is nothing to wait for, and its memory is not counted."""

    def __init__(self, device: torch.device) -> None:
        self.device, self._cuda = device, device.type == "cuda"

    def wait(self) -> None:
        """Until the device has done everything."""
        if self._cuda:
            torch.cuda.synchronize(self.device)

    def clean(self) -> float | None:
        """Give back what no tensor holds, and count the peak from here.

        Returns:
            GiB that are held all the same: what an earlier part leaked, or this one made before.
        """
        gc.collect()
        if not self._cuda:
            return None
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(self.device)
        return round(torch.cuda.memory_allocated(self.device) / GIB, 3)

    def peaks(self) -> dict[str, float]:
        """GiB at most since `clean`: of tensors, and what torch took of the device for them."""
        if not self._cuda:
            return {}
        return {
            "gib": round(torch.cuda.max_memory_allocated(self.device) / GIB, 2),
            "gib_reserved": round(torch.cuda.max_memory_reserved(self.device) / GIB, 2),
        }

    def seconds(self, call: Callable[[], object]) -> float:
        """Of one call, with all that it queues."""
        self.wait()
        began = time.perf_counter()
        call()
        self.wait()
        return time.perf_counter() - began

    def waits(self, call: Callable[[], object]) -> int | None:
        """How often the host waited for the device in a call, by torch's count; None on a CPU.

        Waiting for an event, as the loop does for the numbers of the step before, is not among them.
        """
        if not self._cuda:
            return None
        self.wait()
        torch.cuda.set_sync_debug_mode("warn")
        try:
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                call()
        finally:
            torch.cuda.set_sync_debug_mode("default")
        return sum(SYNC in str(each.message) for each in caught)


def in_window(once_s: float) -> int:
    """Steps that are timed together, of a step that takes so long."""
    return max(1, min(MOST_IN_WINDOW, round(WINDOW_S / once_s)))


@cache
def matmul_tflops(device: str, bf16: bool = True) -> float:
    """TFLOP/s of one large square product of random matrices: the most that this device gives today."""
    side = 8192 if device == "cuda" else 256
    kind = torch.bfloat16 if bf16 else torch.float32
    left, right = (torch.randn(side, side, device=device, dtype=kind) for _ in range(2))
    meter = Meter(torch.device(device))
    for _ in range(3):
        left @ right
    times = [meter.seconds(lambda: left @ right) for _ in range(9)]
    return 2 * side**3 / median(times) / 1e12


@cache
def copy_gb_per_s(device: str) -> float:
    """GB/s that a copy within the device's memory moves, read and written."""
    numbers = (2**30 if device == "cuda" else 2**20) // 4
    source = torch.zeros(numbers, device=device)
    target = torch.empty_like(source)
    meter = Meter(torch.device(device))
    target.copy_(source)
    return 2 * 4 * numbers / median(meter.seconds(lambda: target.copy_(source)) for _ in range(9)) / 1e9
