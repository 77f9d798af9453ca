"""Shards of `scanfoundry data build` with labels in them; patients are hashed in them already."""

from dataclasses import dataclass
from pathlib import Path

from scanfoundry.configs.errors import UserError
from scanfoundry.datasets.labels import Box as DrawnBox
from scanfoundry.datasets.readers import Scan
from scanfoundry.datasets.readers.label_values import as_drawn
from scanfoundry.datasets.shards.format import SampleEntry
from scanfoundry.datasets.shards.reader import BadSample, DataSet, ShardReader
from scanfoundry.finetune.config.study import LabelledData
from scanfoundry.finetune.formats.assemble import Gathered, LabelledItem


@dataclass(frozen=True)
class ShardScan:
    """One scan of a shard, or its mask.

    Attributes:
        reader: of the shard.
        number: of the scan in it.
        mask: whether it is the scan's mask.
    """

    reader: ShardReader
    number: int
    mask: bool = False

    def __str__(self) -> str:
        return f"shard {self.reader.name}, scan {self.reader.entries[self.number].key}"

    def read(self) -> Scan:
        """The scan; UserError where the shard is damaged or gone."""
        entry = self.reader.entries[self.number]
        try:
            stored = self.reader.read_mask(self.number) if self.mask else self.reader.read(self.number)
        except BadSample as error:
            raise UserError(f"{error}; copy or build it again") from error
        if stored is None:
            raise UserError(f"{self} has no mask")
        voxels = stored
        if self.mask:
            voxels = as_drawn(stored, entry.mask.greys if entry.mask is not None else "")[None]
        return Scan(voxels, entry.spacing, orientation=entry.orientation, modality=entry.modality, frames=entry.frames)


def read_shards(location: str | Path, data: LabelledData) -> Gathered:
    """Every scan of a data set but those found under several patients, or of another modality.

    Args:
        location: a folder or a URL.
        data: what the user says of the data set.

    Raises:
        UserError: it is no data set, was built with another site's key, or holds several modalities and none is chosen.
    """
    if data.labels or data.patient_regex or data.channels:
        raise UserError(f"{location} are shards, with labels and patients: leave out labels, patient_regex, channels")
    opened = DataSet(location)
    where = opened.store.shown("")
    found = Gathered([])
    found.site = str(opened.manifest.parameters.get("site") or "unknown")
    wanted = _modality(list(opened.manifest.modalities), data, where)
    for shard in opened.manifest.shards:
        reader = ShardReader(opened.store, shard)
        for number, entry in enumerate(reader.entries):
            if entry.modality != wanted:
                found.drop(f"scans that are not '{wanted}'")
            elif entry.also:
                found.drop("scans found under several patients")
            else:
                found.items.append(_item(reader, number, entry))
    found.modalities = [wanted]
    return found


def _modality(there: list[str], data: LabelledData, where: str) -> str:
    given = data.modality if isinstance(data.modality, str) else None
    if given is None and len(there) > 1:
        raise UserError(f"{where} holds scans of {', '.join(sorted(there))}: set data.modality to one of them")
    if given is not None and given not in there:
        raise UserError(f"{where} holds no scan of data.modality={given}; there are: {', '.join(sorted(there))}")
    return given or there[0]


def _item(reader: ShardReader, number: int, entry: SampleEntry) -> LabelledItem:
    known = entry.labels
    boxes = (
        None
        if known is None or known.boxes is None
        else tuple(DrawnBox(box.low, box.high, box.label) for box in known.boxes)
    )
    return LabelledItem(
        entry.key,
        entry.key,
        entry.patient,
        (ShardScan(reader, number),),
        mask=ShardScan(reader, number, True) if entry.mask is not None else None,
        names=dict(known.names) if known else {},
        boxes=boxes,
        values={**known.classes, **known.targets} if known else {},
        split=entry.split,
    )
