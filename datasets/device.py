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


class HostCopy:
    """A small tensor of a device on its way to the host, which waits for it only when it is read."""

    def __init__(self, tensor: Tensor) -> None:
        self._host, self._event = tensor, None
        if tensor.device.type != "cpu":
            self._host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
            self._host.copy_(tensor, non_blocking=True)
            self._event = torch.cuda.Event()
            self._event.record()

    def read(self) -> Tensor:
        """The tensor on the CPU."""
        if self._event is not None:
            self._event.synchronize()
        return self._host
