"""Memory that a GPU may copy from by itself."""

from collections.abc import Callable


class Pages:
    """Pins memory of this process and lets it go again.

    Args:
        register: pins the bytes from an address on, and returns 0 where that worked.
        unregister: lets go what was pinned at an address.
    """

    def __init__(self, register: Callable[[int, int], int], unregister: Callable[[int], int]) -> None:
        self._register, self._unregister = register, unregister
        self._pinned: list[int] = []

    def pin(self, address: int, size: int) -> bool:
        """Pin `size` bytes; False where the system refuses."""
        if self._register(address, size) != 0:
            return False
        self._pinned.append(address)
        return True

    def unpin_all(self) -> None:
        """Let go of everything, before its memory is given back."""
        while self._pinned:
            self._unregister(self._pinned.pop())


def cuda_pages() -> Pages:
    """Pages for the GPU of this process."""
    import torch  # workers, which import what surrounds this, do without it

    runtime = torch.cuda.cudart()
    return Pages(
        lambda address, size: int(runtime.cudaHostRegister(address, size, 0)),
        lambda address: int(runtime.cudaHostUnregister(address)),
    )
