"""Memory that nobody wrote: what an operator reads by mistake is then likely to be NaN, or large."""

import torch


def leave_behind(value: float) -> None:
    """Free memory that holds `value`, in blocks of many sizes."""
    for dtype in (torch.float32, torch.bfloat16):
        held = [torch.full((1 << power,), value, dtype=dtype) for power in range(7, 20, 2) for _ in range(6)]
        del held
