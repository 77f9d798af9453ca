"""How long a call takes."""

import time
from collections.abc import Callable

import torch


def seconds(call: Callable[[], object], device: str) -> float:
    """How long one call takes, kernels included."""
    if device == "cuda":
        torch.cuda.synchronize()
    started = time.perf_counter()
    call()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started
