"""One part of a trial's snapshots, as the code sees it that fills it."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace

from scanfoundry.finetune.training.saving import Snapshot, SnapshotFolder


@dataclass(frozen=True)
class Slot:
    """One part of a trial's snapshots, for the code that fills it. Without one nothing is saved."""

    saved: SnapshotFolder | None
    part: str

    def soon(self) -> AbstractContextManager[None]:
        """See `SnapshotFolder.soon`."""
        return nullcontext() if self.saved is None else self.saved.soon()

    def chance(self, what: str, take: Callable[[], Snapshot]) -> None:
        """See `SnapshotFolder.chance`."""
        if self.saved is not None:
            self.saved.chance(self.part, what, take)

    def read(self) -> Snapshot | None:
        """See `SnapshotFolder.read`."""
        return None if self.saved is None else self.saved.read(self.part)

    def write(self, snapshot: Snapshot, what: str) -> None:
        """See `SnapshotFolder.write`."""
        if self.saved is not None:
            self.saved.write(self.part, snapshot, what)

    def of(self, part: str) -> "Slot":
        """Another part of the same trial."""
        return replace(self, part=part)

    def forget(self) -> None:
        """See `SnapshotFolder.forget`."""
        if self.saved is not None:
            self.saved.forget(self.part)

    def leave_if_asked(self, what: str) -> None:
        """See `SnapshotFolder.leave_if_asked`."""
        if self.saved is not None:
            self.saved.leave_if_asked(what)

    def goes_on(self, what: str) -> None:
        """Log from where."""
        if self.saved is not None:
            self.saved.goes_on(what)


NOWHERE = Slot(None, "")
