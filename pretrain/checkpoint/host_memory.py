"""The copy of a rank's tensors in host memory that a checkpoint is written from while the training goes on."""

import weakref

import torch
from torch import Tensor

from scanfoundry.datasets.workers.pinning import cuda_pages

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
        self._pages = cuda_pages() if device.type == "cuda" else None
        if self._pages is not None:
            weakref.finalize(self, self._pages.unpin_all).atexit = False  # then the process gives all back

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
        if self._pages is not None:
            self._pages.unpin_all()
        self._buffer = torch.empty(0, dtype=torch.uint8)
        self._buffer = torch.empty(total, dtype=torch.uint8)
        if self._pages is not None:
            self._pages.pin(self._buffer.data_ptr(), total)
