"""From the host to a device without making the host wait."""

from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor


def to_device(host: Tensor | NDArray[Any], device: torch.device, dtype: torch.dtype | None = None) -> Tensor:
    """A small tensor of the host on a device; on the host itself it stays where it is.

    A plain copy waits until the device has done everything that was queued before. This one lies in pinned memory and
    is queued behind that work; the allocator of pinned memory keeps it until it is done.

    Args:
        host: on the CPU, a tensor or an array of numpy.
        device: where it is needed.
        dtype: that it is cast to, on the host; None: its own.
    """
    tensor = host if isinstance(host, Tensor) else torch.from_numpy(host)
    if dtype is not None:
        tensor = tensor.to(dtype)
    if device.type == "cpu":
        return tensor
    return tensor.pin_memory().to(device, non_blocking=True)
