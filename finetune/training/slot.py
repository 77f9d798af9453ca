"""One part of a trial's snapshots, as the code sees it that fills it."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace

from scanfoundry.finetune.training.saving import Saved, Snapshot


@dataclass(frozen=True)
class Slot:
    """One part of a cell's snapshots, for the code that fills it. Without a cell nothing is saved."""

    saved: Saved | None
    part: str

    def soon(self) -> AbstractContextManager[None]:
        """See `Saved.soon`."""
        return nullcontext() if self.saved is None else self.saved.soon()

    def chance(self, what: str, take: Callable[[], Snapshot]) -> None:
        """See `Saved.chance`."""
        if self.saved is not None:
            self.saved.chance(self.part, what, take)

    def read(self) -> Snapshot | None:
        """See `Saved.read`."""
        return None if self.saved is None else self.saved.read(self.part)

    def write(self, snapshot: Snapshot, what: str) -> None:
        """See `Saved.write`."""
        if self.saved is not None:
            self.saved.write(self.part, snapshot, what)

    def of(self, part: str) -> "Slot":
        """Another part of the same cell."""
        return replace(self, part=part)

    def forget(self) -> None:
        """See `Saved.forget`."""
        if self.saved is not None:
            self.saved.forget(self.part)

    def leave_if_asked(self, what: str) -> None:
        """See `Saved.leave_if_asked`."""
        if self.saved is not None:
            self.saved.leave_if_asked(what)

    def goes_on(self, what: str) -> None:
        """Say from where."""
        if self.saved is not None:
            self.saved.goes_on(what)


NOWHERE = Slot(None, "")
