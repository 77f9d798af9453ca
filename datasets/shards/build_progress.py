"""The state of a build while it runs."""

from collections.abc import Sequence
from pathlib import Path

from scanfoundry.configs.errors import UserError
from scanfoundry.datasets.discovery.quarantine import QUARANTINE, Quarantined, write_quarantine
from scanfoundry.datasets.processes import Progress
from scanfoundry.datasets.shards.shard_worker import ShardResult


class BuildProgress:
    """The finished shards of a build, and the source that each unfinished shard is at.

    Args:
        out: folder of the data set.
        total: number of sources.
        max_bad: share of the sources that may be refused.
        done: results of shards that an earlier build finished, by name.
        none: files that were no scans before the build began.
        progress: called with what is done, how much of it, and of how much.
    """

    def __init__(
        self,
        out: Path,
        total: int,
        max_bad: float,
        done: dict[str, ShardResult],
        none: Sequence[Quarantined],
        progress: Progress,
    ) -> None:
        self.out, self.total, self.max_bad, self._progress = out, total, max_bad, progress
        self._results, self._none = dict(done), list(none)
        self.underway: dict[str, int] = {}

    def add(self, shard: str, result: ShardResult) -> None:
        """Record a finished shard.

        Raises:
            UserError: more sources are refused than the build may leave out.
        """
        self._results[shard] = result
        self.underway.pop(shard, None)
        self.check_ceiling()

    def finished(self) -> list[ShardResult]:
        """The results of all finished shards, in order."""
        return [self._results[name] for name in sorted(self._results)]

    def report(self) -> None:
        """Report the progress in sources."""
        finished = sum(result.sources for result in self._results.values())
        self._progress("building", finished + sum(self.underway.values()), self.total)

    def quarantine(self) -> list[Quarantined]:
        """All lines of quarantine.jsonl so far."""
        return [*self._none, *(entry for result in self._results.values() for entry in result.quarantine)]

    def check_ceiling(self) -> None:
        """UserError where more sources are refused than the build may leave out."""
        lines = (each for each in self.quarantine() if each.kind == "refused" and each.first is None)
        refused = sorted(lines, key=lambda each: each.path)
        stored = sum(result.record.samples for result in self._results.values() if result.record is not None)
        read = sum(result.sources for result in self._results.values())
        total = self.total + sum(each.kind == "refused" for each in self._none)
        nothing = read == self.total and not stored
        if not nothing and len(refused) <= self.max_bad * total:
            return
        write_quarantine(self.out, self.quarantine())
        limit = "so nothing is left" if nothing else f"more than --max-bad {self.max_bad:g} allows"
        first = f" (first: {refused[0].path}: {refused[0].reason})" if refused else ""
        raise UserError(
            f"{len(refused)} of {total} scans could not be read, {limit}; reasons are in {self.out / QUARANTINE}{first}"
        )
