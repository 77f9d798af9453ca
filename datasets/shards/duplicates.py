"""Exact duplicates (scans with the same voxels): which is kept, and what it takes over from the others."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from scanfoundry.datasets.shards.format import SampleEntry, ScanFacts

SampleId = tuple[int, int]  # shard, sample
Walk = Callable[[], Iterator[tuple[SampleId, SampleEntry]]]


@dataclass(frozen=True)
class Kept:
    """The scan of a group of duplicates that is kept."""

    also: tuple[str, ...]  # patients of the others
    labels_differ: bool  # somebody was wrong about one of them

    def apply(self, facts: ScanFacts) -> ScanFacts:
        """`facts` with what the group adds."""
        warnings = [*facts.warnings, "labels_differ"] if self.labels_differ else facts.warnings
        return facts.model_copy(update={"also": list(self.also), "warnings": warnings})


@dataclass(frozen=True)
class Dropped:
    """A scan that is left out, and the one that it equals: None where an earlier build stored that.

    `labels_lost`: it has labels, which a shard of before does not take over.
    """

    twin: SampleId | None
    labels_differ: bool
    labels_lost: bool = False


def find_duplicates(walk: Walk) -> dict[SampleId, Kept | Dropped]:
    """Decide what becomes of every scan whose voxels another scan repeats.

    The scan with the most labels is kept; among equals the one with the most facts (a DICOM knows more than the NIfTI
    made of it, above all its modality), then the first. The outcome depends on the order of the scans alone.

    Args:
        walk: yields all scans in order; it is called twice.

    Returns:
        A decision for each scan that has a twin, by (shard, sample).
    """
    seen: set[bytes] = set()
    twice: set[bytes] = set()
    for _, entry in walk():
        content = bytes.fromhex(entry.content)
        (twice if content in seen else seen).add(content)
    groups: dict[bytes, list[tuple[SampleId, SampleEntry]]] = {}
    if twice:
        for place, entry in walk():
            if bytes.fromhex(entry.content) in twice:
                groups.setdefault(bytes.fromhex(entry.content), []).append((place, entry))
    decisions: dict[SampleId, Kept | Dropped] = {}
    for group in groups.values():
        decisions.update(_of_group(group))
    return decisions


def _of_group(group: Sequence[tuple[SampleId, SampleEntry]]) -> dict[SampleId, Kept | Dropped]:
    place, kept = max(
        group, key=lambda each: (count_labels(each[1]), len(each[1].facts), tuple(-number for number in each[0]))
    )
    also = sorted({entry.patient for _, entry in group} - {kept.patient})
    differ = {each: labels_differ(kept, entry) for each, entry in group}
    decisions: dict[SampleId, Kept | Dropped] = {
        each: Dropped(place, differ[each]) for each, _ in group if each != place
    }
    decisions[place] = Kept(tuple(also), any(differ.values()))
    return decisions


def count_labels(entry: SampleEntry) -> int:
    """How many labels a scan has: its mask, its boxes, each class and each target."""
    labels = entry.labels
    found = 0 if labels is None else len(labels.classes) + len(labels.targets) + (labels.boxes is not None)
    return found + (entry.mask is not None)


def labels_differ(one: SampleEntry, other: SampleEntry) -> bool:
    """True where both are labelled, and not alike."""
    if not (count_labels(one) and count_labels(other)):
        return False
    masks = [entry.mask and (entry.mask.crc32, entry.mask.length) for entry in (one, other)]
    return one.labels != other.labels or masks[0] != masks[1]
