"""What a piece of code held at most, measured: to hold the estimate against."""

import gc
from pathlib import Path
from types import TracebackType

import torch
from torch.profiler import ProfilerActivity, profile, record_function

MARK = "scanfoundry: from here"


class Allocated:
    """Bytes of tensors at most after `begin`, of those made since the context was entered; by torch's allocators.

    On a CPU this is torch's profiler, which sees every buffer, kernels' own ones included, but only of this thread:
    right in a run of one process. Where gloo's threads let tensors go, take `Resident`.
    """

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"
        self._profile = profile(activities=[ProfilerActivity.CPU], profile_memory=True)
        self.peak = 0

    def __enter__(self) -> "Allocated":
        if not self._cuda:
            self._profile.__enter__()
        return self

    def begin(self) -> None:
        """The peak counts from here."""
        gc.collect()
        if self._cuda:
            torch.cuda.reset_peak_memory_stats()
        with record_function(MARK):
            pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._cuda:
            self.peak = torch.cuda.max_memory_allocated()
            return
        self._profile.__exit__(kind, error, at)
        results = self._profile.profiler
        if kind is not None or results is None or results.kineto_results is None:
            return
        events = sorted(results.kineto_results.events(), key=lambda event: event.start_ns())
        held, counting = 0, False
        for event in events:
            counting = counting or event.name() == MARK
            if event.name() == "[memory]":
                held += event.nbytes()  # type: ignore[attr-defined]
            if counting:
                self.peak = max(self.peak, held)


class Resident:
    """Bytes of memory that the system gave this process at most after `begin`, beyond what it had on entering.

    Linux alone. Start the process with MALLOC_MMAP_THRESHOLD_=65536, or freed memory is kept and counted.
    """

    def __init__(self) -> None:
        self.peak = self._before = 0

    def __enter__(self) -> "Resident":
        gc.collect()
        self._before = _status("VmRSS")
        return self

    def begin(self) -> None:
        """The peak counts from here."""
        gc.collect()
        Path("/proc/self/clear_refs").write_text("5")  # sets the high-water mark to what is resident now

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.peak = _status("VmHWM") - self._before


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))
