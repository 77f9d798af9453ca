"""How many shards a worker keeps: enough for all that the stream uses at a time, as far as open files allow."""

import resource
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from scanfoundry.datasets.shards.index import ENTRY_TEXT, IN_MEMORY, PARSED

ENTRIES = 16384  # of indices, that a worker keeps parsed
_FILES = 2  # of an open shard: itself and its index
_RESERVED = 128  # files of a process that are no shards: pipes, batch buffers, libraries
# Of the shards in use at a time. The next window is begun while the last crops of the one before are on their way, and
# shards that are done leave only after others have come.
_MARGIN = 2
_FEWEST = 64  # shards of small data sets are all kept
_MOST_FILES = 1 << 16  # what a process asks for, where there is no limit


@dataclass(frozen=True)
class SourceLoad:
    """What one source asks of the caches.

    Attributes:
        in_use: shards at a time, of all its streams.
        scans: in a shard, on average.
        shard_bytes: of its largest shard, where shards are held in a cache of files that were fetched; else 0.
        shards: that it has.
    """

    in_use: int
    scans: float
    shard_bytes: int = 0
    shards: int = sys.maxsize


@dataclass(frozen=True)
class CacheSizes:
    """What each worker keeps.

    Attributes:
        in_use: shards that the stream uses at a time.
        indices: shards whose index is kept.
        open_shards: shards whose files are kept open.
        memory: bytes of indices and parsed entries, at most and about.
        files: that are open, at most.
        limit: of open files, of a worker.
        fetched: shards that the cache of fetched files has room for, for each worker; None where none are fetched.
    """

    in_use: int
    indices: int
    open_shards: int
    memory: int
    files: int
    limit: int
    fetched: int | None

    def messages(self, workers: int) -> list[str]:
        """What the caches take, and what does not fit into them, in sentences for people.

        Args:
            workers: processes that have such caches; 0: the calling process has them.
        """
        each = f"each of {workers} workers keeps" if workers else "kept are"
        lines = [
            f"data: {self.in_use} shards are in use at a time; {each} up to {self.open_shards} open ({self.files} "
            f"files of {self.limit}) and {self.memory / 1e6:.0f} MB of their indices"
        ]
        if self.open_shards >= self.in_use:
            return lines
        if self.fetched is not None and self.open_shards == self.fetched:
            lines.append(
                f"data.cache.gb has room for {self.open_shards} shards of a worker: those that are used less are let "
                "go and perhaps fetched again; raise data.cache.gb, or lower data.window"
            )
        else:
            wanted = _FILES * _MARGIN * self.in_use + _RESERVED
            lines.append(
                f"the limit of open files allows {self.open_shards} open shards: the others are opened again when they "
                f"are read, which takes time on network disks; set 'ulimit -n {wanted}', or lower data.window"
            )
        return lines


def cache_sizes(loads: Sequence[SourceLoad], ahead_bytes: int, holders: int, workers: int) -> CacheSizes:
    """What each worker keeps of all sources.

    Args:
        loads: of the data sets; drawn sources ask for nothing.
        ahead_bytes: of the cache of fetched files, that all holders share.
        holders: processes of all ranks that hold shards.
        workers: of this process; 0: it reads itself.
    """
    in_use = sum(load.in_use for load in loads)
    indices = max(_FEWEST, _MARGIN * in_use)
    limit = file_limit(raised=workers > 0)
    largest = max((load.shard_bytes for load in loads), default=0)
    fetched = max(1, int(ahead_bytes / (largest * holders))) if largest else None
    allowed = max(1, (limit - _RESERVED) // _FILES)
    opened = min(indices, allowed, indices if fetched is None else fetched)
    kept = [min(load.shards, _share(load, in_use) * indices) for load in loads]
    memory = sum(count * _index_bytes(load.scans) for load, count in zip(loads, kept, strict=True))
    scans = sum(count * load.scans for load, count in zip(loads, kept, strict=True))
    memory += min(ENTRIES, scans) * PARSED
    return CacheSizes(in_use, indices, opened, int(memory), _FILES * opened, limit, fetched)


def _share(load: SourceLoad, in_use: int) -> float:
    return load.in_use / in_use if in_use else 0.0


def _index_bytes(scans: float) -> float:
    """Of the index of a shard as `ShardEntries` keeps it: its text, or where entries lie and their checksums."""
    text = scans * ENTRY_TEXT
    return text + 8 * scans if text <= IN_MEMORY else 12 * scans


def file_limit(raised: bool) -> int:
    """The files that a process may have open.

    Args:
        raised: as far as `raise_file_limit` raises it.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    return max(_number(soft), min(_number(hard), _MOST_FILES)) if raised else _number(soft)


def raise_file_limit() -> None:
    """Allow this process as many open files as its user may have: the usual 1,024 are too few for many sources."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = min(_number(hard), _MOST_FILES)
    if wanted > _number(soft):
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _number(limit: int) -> int:
    return sys.maxsize if limit == resource.RLIM_INFINITY else limit
