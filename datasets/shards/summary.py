"""What a data set holds, gathered shard by shard: ranges, histograms and counts of labels and warnings."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from scanfoundry.datasets.shards.format import SampleEntry

LowHigh = tuple[float, float]
# Upper ends of the bins of the spacing histogram, mm; the last bin is open.
SPACING_BINS = (0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 5.0, 7.5)


@dataclass
class ModalityReport:
    """Ranges (smallest, largest) over the scans of one modality."""

    scans: int = 0
    shape: list[LowHigh] = field(default_factory=list)  # C, D, H, W
    spacing: list[LowHigh] = field(default_factory=list)  # D, H, W in mm
    intensity: LowHigh = (float("inf"), float("-inf"))
    dtypes: Counter[str] = field(default_factory=Counter)
    # Of the spacing within slices and between them, scans per bin of `SPACING_BINS`.
    in_plane: list[int] = field(default_factory=lambda: [0] * (len(SPACING_BINS) + 1))
    between: list[int] = field(default_factory=lambda: [0] * (len(SPACING_BINS) + 1))

    def add(self, entry: SampleEntry) -> None:
        """One scan more."""
        self.scans += 1
        self.shape = _widen(self.shape, entry.shape)
        self.spacing = _widen(self.spacing, entry.spacing)
        low, high = entry.stats["min"], entry.stats["max"]
        self.intensity = (min(self.intensity[0], low), max(self.intensity[1], high))
        self.dtypes[entry.dtype if entry.jpeg is None else f"{entry.dtype} as JPEG"] += 1
        self.in_plane[_bin(entry.spacing[2])] += 1
        if entry.shape[1] > 1 and not entry.frames:
            self.between[_bin(entry.spacing[0])] += 1


def _widen(ranges: list[LowHigh], values: tuple[float, ...]) -> list[LowHigh]:
    if not ranges:
        return [(value, value) for value in values]
    return [(min(low, value), max(high, value)) for (low, high), value in zip(ranges, values, strict=True)]


def _bin(spacing: float) -> int:
    return sum(spacing > edge for edge in SPACING_BINS)


class Summary:
    """Everything that `data check` tells, without keeping the entries."""

    def __init__(self) -> None:
        self.scans = self.jpegs = 0
        self.patients: set[str] = set()
        self.keys: set[str] = set()
        self.contents: set[bytes] = set()
        self.warnings: Counter[str] = Counter()
        self.labels: Counter[str] = Counter()
        self.greys: Counter[str] = Counter()
        self._modalities: dict[str, ModalityReport] = {}

    def add(self, entries: Iterable[SampleEntry]) -> None:
        """One shard more."""
        for entry in entries:
            self.scans += 1
            self.jpegs += entry.jpeg is not None
            self.patients.update(entry.all_patients())
            self.keys.add(entry.key)
            self.contents.add(bytes.fromhex(entry.content))
            self.warnings.update(entry.warnings)
            self._modalities.setdefault(entry.modality, ModalityReport()).add(entry)
            self._count_labels(entry)

    def _count_labels(self, entry: SampleEntry) -> None:
        self.labels["mask"] += entry.mask is not None
        if entry.mask is not None and entry.mask.greys:
            self.greys[entry.mask.greys] += 1
            self.labels["mask of 0 and 255, as 0 and 1"] += 1
            if entry.mask.greys == "cut":
                self.labels["mask of greys, cut at half"] += 1
        if entry.labels is not None:
            self.labels["boxes"] += entry.labels.boxes is not None
            self.labels.update(f"class {name}" for name in entry.labels.classes)
            self.labels.update(f"target {name}" for name in entry.labels.targets)

    def modalities(self) -> dict[str, ModalityReport]:
        """Reports by modality, in alphabetical order."""
        return dict(sorted(self._modalities.items()))
