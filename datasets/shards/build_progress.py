"""The bookkeeping of a build while it runs: sums of what is finished, and the results that lie on disk."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from scanfoundry.configs.errors import UserError
from scanfoundry.datasets.discovery.quarantine import QUARANTINE, Quarantined, read_quarantine, write_quarantine
from scanfoundry.datasets.processes import Progress
from scanfoundry.datasets.shards.format import MANIFEST, parse
from scanfoundry.datasets.shards.shard_worker import ShardResult, result_path


class BuildProgress:
    """Sums over the finished shards of a build, and the source that each unfinished shard is at.

    Attributes:
        shards: names of those that are finished.
        resumed: how many of these an earlier build finished.
        underway: number of the source that each unfinished shard is at.
        kept_jpegs, decoded_jpegs: see `ShardResult`.

    Results are not kept: a shard costs the same at the first and at the millionth, in time and in memory.

    Args:
        out: folder of the data set.
        total: number of sources.
        max_bad: share of the sources that may be refused.
        done: results of shards that an earlier build finished, with their names.
        none: files that were no scans before the build began.
        progress: called with what is done, how much of it, and of how much.
        here: number of sources that this process works on; None: all.
    """

    def __init__(
        self,
        out: Path,
        total: int,
        max_bad: float,
        done: Iterable[tuple[str, ShardResult]],
        none: Sequence[Quarantined],
        progress: Progress,
        here: int | None = None,
    ) -> None:
        self.out, self.total, self.max_bad, self._progress = out, total, max_bad, progress
        self._here, self._none = total if here is None else here, list(none)
        self.shards: list[str] = []
        self.underway: dict[str, int] = {}
        self._read = self._stored = self._refused = 0
        self.kept_jpegs = self.decoded_jpegs = 0
        self._first: Quarantined | None = None  # of the refused, by path
        self._bad_files = sum(each.kind == "refused" for each in self._none)
        self._count_refused(self._none)
        for shard, result in done:
            self._count(shard, result)
        self.resumed = len(self.shards)

    def add(self, shard: str, result: ShardResult) -> None:
        """Count a finished shard, whose result lies on disk.

        Raises:
            UserError: more sources are refused than the build may leave out.
        """
        self._count(shard, result)
        self.underway.pop(shard, None)
        self.check_ceiling()

    def report(self) -> None:
        """Report the progress in sources."""
        self._progress("building", self._read + sum(self.underway.values()), self._here)

    def quarantine(self) -> Iterator[Quarantined]:
        """All lines of quarantine.jsonl so far."""
        yield from self._none
        for shard in self.shards:
            yield from read_result(self.out, shard).quarantine

    def check_ceiling(self) -> None:
        """UserError where more sources are refused than the build may leave out."""
        total = self.total + self._bad_files
        nothing = self._read == self.total and not self._stored
        if not nothing and self._refused <= self.max_bad * total:
            return
        write_quarantine(self.out, all_lines(self.out, self.quarantine()))
        limit = "so nothing is left" if nothing else f"more than --max-bad {self.max_bad:g} allows"
        first = f" (first: {self._first.path}: {self._first.reason})" if self._first is not None else ""
        raise UserError(
            f"{self._refused} of {total} scans could not be read, {limit}; "
            f"reasons are in {self.out / QUARANTINE}{first}"
        )

    def _count(self, shard: str, result: ShardResult) -> None:
        self.shards.append(shard)
        self._read += result.sources
        self._stored += 0 if result.record is None else result.record.samples
        self.kept_jpegs += result.kept_jpegs
        self.decoded_jpegs += result.decoded_jpegs
        self._count_refused(result.quarantine)

    def notes(self) -> list[str]:
        """What a person should know of how JPEG files were stored, where they were to stay JPEG."""
        found = [f"{self.kept_jpegs} JPEG files are kept as JPEG, without metadata"] if self.kept_jpegs else []
        if self.decoded_jpegs:
            found.append(
                f"{self.decoded_jpegs} JPEG files are stored as voxels: turned by EXIF, or unusual in their coding"
            )
        return found

    def _count_refused(self, lines: Iterable[Quarantined]) -> None:
        for line in lines:
            if line.kind == "refused" and line.first is None:
                self._refused += 1
                if self._first is None or line.path < self._first.path:
                    self._first = line


def all_lines(out: Path, lines: Iterable[Quarantined]) -> list[Quarantined]:
    """The lines of a build, behind those of the data set that it appends to, which an append of before may have in."""
    before = read_quarantine(out) if (out / MANIFEST).exists() else []
    return list(dict.fromkeys([*before, *lines]))


def read_result(out: Path, shard: str) -> ShardResult:
    """The result of a finished shard, which lies in the partial folder of `out`.

    Raises:
        UserError: the file is damaged.
    """
    path = result_path(out, shard)
    return parse(ShardResult, path.read_bytes(), str(path))
