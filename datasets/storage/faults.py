"""Faults of storage that may mend themselves: a file server that restarts, a stale mount, data that are gone."""

import errno

from scanfoundry.configs.errors import UserError

# What a file server or a disk answers while it is away, and what a mount that is not there looks like.
FAULTS = {
    errno.ESTALE, errno.EIO, errno.ENOENT, errno.ENOTDIR, errno.ENODEV, errno.ENXIO, errno.ENOTCONN, errno.ESHUTDOWN,
    errno.ETIMEDOUT, errno.ECONNRESET, errno.ECONNREFUSED, errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ENETUNREACH,
    errno.ENETDOWN, errno.EREMOTEIO,
}  # fmt: skip


class StorageFault(UserError):
    """Data that were there cannot be read at the moment: the same command may work once the storage is back."""


class FaultText(str):
    """The reason why a scan cannot be read, where that is a fault of the storage; elsewhere a reason is a plain str."""

    __slots__ = ()


def is_storage_fault(error: BaseException | None) -> bool:
    """Whether an error, or one that it was raised from, is a fault of storage and not of what is stored."""
    while error is not None:
        if isinstance(error, StorageFault) or (isinstance(error, OSError) and error.errno in FAULTS):
            return True
        error = error.__cause__
    return False


def reason_of(error: Exception) -> str:
    """The text of an error, as a `FaultText` where it is a fault of the storage."""
    return FaultText(error) if is_storage_fault(error) else str(error)
