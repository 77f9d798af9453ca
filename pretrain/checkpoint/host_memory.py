"""The copy of a rank's tensors in host memory that a checkpoint is written from while the training goes on."""

import weakref
from collections.abc import Callable

import torch
from torch import Tensor

ALIGNMENT = 64  # bytes: of a cache line, and of any dtype


class HostMemory:
    """One buffer that is kept from checkpoint to checkpoint.

    A buffer of its own for each checkpoint would cost the kernel's clearing of its pages every time, several times
    what the copy itself takes. Beside a GPU it is locked into memory, where copies run at the bus's full speed.

    Args:
        device: that the tensors are on.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._buffer = torch.empty(0, dtype=torch.uint8)
        self._unlock: Callable[[], object] = tuple  # nothing is locked yet

    def copy(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Copies of tensors, valid until the next call; whole when the call returns."""
        offsets, total = {}, 0
        for key, tensor in tensors.items():
            offsets[key] = total
            total += -(-tensor.numel() * tensor.element_size() // ALIGNMENT) * ALIGNMENT
        if self._buffer.numel() < total:
            self._allocate(total)
        copies = {}
        for key, tensor in tensors.items():
            part = self._buffer.narrow(0, offsets[key], tensor.numel() * tensor.element_size())
            copies[key] = part.view(tensor.dtype).view(tensor.shape).copy_(tensor.detach(), non_blocking=True)
        if self._device.type == "cuda":
            torch.cuda.current_stream().synchronize()
        return copies

    def _allocate(self, total: int) -> None:
        """Make a buffer of `total` bytes, after the old one has gone.

        torch's own pinned memory comes in powers of two, up to twice of what is asked for, so the pages are locked
        here. Where that fails (a limit on locked memory) copies are slower and just as right.
        """
        self._unlock()
        self._buffer = torch.empty(0, dtype=torch.uint8)
        self._buffer = torch.empty(total, dtype=torch.uint8)
        if self._device.type == "cuda":
            runtime, address = torch.cuda.cudart(), self._buffer.data_ptr()
            if int(runtime.cudaHostRegister(address, total, 0)) == 0:
                self._unlock = unlock = weakref.finalize(self, runtime.cudaHostUnregister, address)
                unlock.atexit = False  # the process gives all back
