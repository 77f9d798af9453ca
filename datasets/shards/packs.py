"""Whether the packs of a shard hold what its index says of kept JPEGs, and nothing else."""

import tarfile
from collections.abc import Sequence

from scanfoundry.datasets.shards.format import Member, SampleEntry
from scanfoundry.datasets.shards.jpeg import strip_jpeg

PACK = "pack"  # suffix of a member of the tar


def check_packs(tar: tarfile.TarFile, entries: Sequence[SampleEntry]) -> int:
    """How many packs a shard has.

    Raises:
        ValueError: a pack holds other bytes than those of kept JPEGs and their masks, or a JPEG has metadata.
    """
    packs = [member for member in tar if member.name.endswith(f".{PACK}")]
    kept = [entry for entry in entries if entry.jpeg is not None]
    places: list[Member] = [place for entry in kept for place in (entry, entry.mask) if place is not None]
    inside = [(pack.offset_data, pack.offset_data + pack.size) for pack in packs]
    if any(pack.type != tarfile.REGTYPE for pack in packs) or _runs(places) != inside:
        raise ValueError("its packs hold other bytes than its index says")
    for entry in kept:
        tar.fileobj.seek(entry.offset)
        payload = tar.fileobj.read(entry.length)
        if strip_jpeg(payload) != payload:
            raise ValueError(f"scan {entry.key} is a JPEG with metadata")
    return len(packs)


def _runs(places: Sequence[Member]) -> list[tuple[int, int]]:
    """Where members that follow each other without a gap begin and end."""
    runs: list[tuple[int, int]] = []
    for place in places:
        end = place.offset + place.length
        if runs and runs[-1][1] == place.offset:
            runs[-1] = runs[-1][0], end
        else:
            runs.append((place.offset, end))
    return runs
