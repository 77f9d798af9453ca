"""One shard from scans: tar and index. The same scans give the same bytes."""

import hashlib
import os
import tarfile
from pathlib import Path
from types import TracebackType

import numpy as np
from isal.isal_zlib import crc32
from numpy.typing import NDArray

from scanfoundry.configs.files import make_anew, sha256_of, write_bytes
from scanfoundry.datasets.intensity import normalisable, statistics
from scanfoundry.datasets.labels import Labels
from scanfoundry.datasets.readers.labels import Greys
from scanfoundry.datasets.readers.scan import FACTS, ReadError, Scan
from scanfoundry.datasets.shards.blocks import WHOLE, block_table
from scanfoundry.datasets.shards.encode import Codec, Encoded, encode
from scanfoundry.datasets.shards.foreground import foreground_bitmap
from scanfoundry.datasets.shards.format import (
    BLOCK,
    INDEX_KEY,
    VERSION,
    WITH_BLOCKS,
    WITH_JPEG,
    BoxRecord,
    LabelRecord,
    MaskMember,
    Member,
    SampleEntry,
    ScanFacts,
    ShardIndex,
    ShardRecord,
    index_name,
    pack_bits,
    padded,
    to_json,
)
from scanfoundry.datasets.shards.jpeg import KeptJpeg
from scanfoundry.datasets.shards.packed_index import pack_index
from scanfoundry.datasets.shards.packs import PACK
from scanfoundry.datasets.shards.thumbnail import ThumbnailList

_PACK = 1 << 20  # bytes of kept JPEGs from which on a member of the tar is full
EncodedMask = tuple[Encoded, str, Greys]  # with the dtype of its values, and how they were drawn


def record_of(labels: Labels) -> LabelRecord | None:
    """Labels as they stand in a shard, without the mask; None where there are none."""
    if not (labels.names or labels.classes or labels.targets) and labels.boxes is None:
        return None
    boxes = None
    if labels.boxes is not None:
        boxes = [BoxRecord(low=box.low, high=box.high, label=box.label) for box in labels.boxes]
    return LabelRecord(names=labels.names, boxes=boxes, classes=labels.classes, targets=labels.targets)


def content_hash(voxels: NDArray) -> str:
    """Equal for scans of the same shape, dtype and voxels only; 32 hex digits."""
    digest = hashlib.sha256(f"{voxels.shape} {voxels.dtype.name}".encode())
    digest.update(np.ascontiguousarray(voxels).data)
    return digest.hexdigest()[:32]


class ShardWriter:
    """Writes `path` (x.tar) and its index beside it; both appear complete when the context ends without an error.

    The index appears last: where it exists, the shard is whole. A shard without scans leaves no file.
    """

    def __init__(self, path: Path, codec: Codec) -> None:
        self.path, self._codec = path, codec
        self._draft = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        self._entries: list[SampleEntry] = []
        self.thumbnails = ThumbnailList()  # of the scans that were added
        self._position = 0
        self._pack = bytearray()  # kept JPEGs and their masks, until they are a member of the tar
        self._pack_key = ""
        self.record: ShardRecord | None = None

    def __enter__(self) -> "ShardWriter":
        make_anew(self._draft)
        self._stream = open(self._draft, "wb")
        # Here and not above: it imports torch where that is there (see task.worker).
        from webdataset import TarWriter

        self._tar = TarWriter(self._stream, encoder=False, mtime=0, user="", group="")
        # Its own keeps back the last 10 kB, which `cut` could not take back. The bytes are the same.
        self._tar.tarstream = tarfile.open(fileobj=self._stream, mode="w:", format=tarfile.USTAR_FORMAT)
        return self

    def __len__(self) -> int:
        return len(self._entries)

    def cut(self, scans: int) -> None:
        """Takes back all but the first `scans`: what a source gave before it proved damaged.

        A kept JPEG is all that its source gives, so none of those that are taken back lies in a pack.
        """
        if scans == len(self._entries):
            return
        if any(entry.jpeg is not None for entry in self._entries[scans:]):
            raise RuntimeError("a kept JPEG is taken back")
        self._position = self._entries[scans].offset - BLOCK
        del self._entries[scans:]
        self.thumbnails.cut(scans)
        self._stream.seek(self._position)
        self._stream.truncate()
        self._tar.tarstream.offset = self._position  # tarfile pads the end by it

    def add(
        self,
        scan: Scan,
        key: str,
        modality: str,
        patient: str,
        labels: Labels | None = None,
        study: str = "",
        jpeg: KeptJpeg | None = None,
    ) -> None:
        """Appends one scan under `key`; its modality is the file's own where that knows it.

        jpeg: is stored in place of its voxels, to which it decodes.

        Raises:
            ReadError: its intensities cannot be normalised.
        """
        labels = scan.labels if labels is None else labels
        stats = statistics(scan.voxels)
        if not normalisable(stats):
            raise ReadError("its intensities are too large or too close together for float32")
        bitmap = foreground_bitmap(scan.voxels, stats["threshold"])
        if jpeg is None:
            encoded = encode(scan.voxels, self._codec, scan.frames)
        else:
            encoded = Encoded(jpeg.payload, scan.voxels.dtype.name, None, False)
        facts = ScanFacts(
            key=key,
            shape=scan.voxels.shape,
            dtype=scan.voxels.dtype.name,
            stored=encoded.stored,
            levels=encoded.levels,
            rows=encoded.rows,
            jpeg=None if jpeg is None else jpeg.pixels,
            spacing=scan.spacing,
            orientation=scan.orientation,
            frames=scan.frames,
            modality=scan.modality or modality,
            patient=patient,
            study=study,
            split=scan.split,
            facts={name: scan.facts[name] for name in FACTS if scan.facts.get(name)},
            warnings=list(scan.warnings),
            labels=record_of(labels),
            stats=stats,
            grid=bitmap.shape,
            foreground=pack_bits(bitmap),
        )
        mask = None
        if labels.mask is not None:
            mask = (encode(labels.mask[None], self._codec, scan.frames), labels.mask.dtype.name, labels.greys)
        self.append(facts, encoded.payload, content_hash(scan.voxels), mask)
        self.thumbnails.add(scan.voxels, stats)

    def append(self, facts: ScanFacts, payload: bytes, content: str, mask: EncodedMask | None) -> None:
        """Appends an encoded scan, the hash of its voxels, and its encoded mask with what is known of its values."""
        if facts.jpeg is not None:
            self._append_packed(facts, payload, content, mask)
            return
        self._close_pack()
        description = to_json(facts)
        members = {"b2nd": payload, "json": description}  # TarWriter writes them in the order of their names
        offset = self._position + BLOCK
        self._position = offset + padded(len(payload))
        blocks = member = None
        if len(payload) > WHOLE and not facts.rows and (table := block_table(payload)) is not None:
            members["blocks"] = table.to_bytes()
            blocks = self._place(members["blocks"])
        self._position += BLOCK + padded(len(description))
        if mask is not None:
            members["mask.b2nd"] = mask[0].payload
            member = _mask_member(self._place(members["mask.b2nd"]), mask)
        self._tar.write({"__key__": facts.key, **members})
        own = {"offset": offset, "length": len(payload), "crc32": crc32(payload)}
        more = {"content": content, "mask": member, "blocks": blocks}
        self._entries.append(SampleEntry(**{**facts.model_dump(), **own, **more}))

    def _append_packed(self, facts: ScanFacts, payload: bytes, content: str, mask: EncodedMask | None) -> None:
        """Appends a kept JPEG behind others in one member: a header each, and what pads it, is much of small ones."""
        if len(self._pack) >= _PACK:
            self._close_pack()
        if not self._pack:
            self._pack_key = facts.key
        own = self._packed(payload).model_dump()
        member = None if mask is None else _mask_member(self._packed(mask[0].payload), mask)
        self._entries.append(SampleEntry(**{**facts.model_dump(), **own, "content": content, "mask": member}))

    def _packed(self, content: bytes) -> Member:
        """Where the next part of the pack will lie, which has this content."""
        offset = self._position + BLOCK + len(self._pack)
        self._pack += content
        return Member(offset=offset, length=len(content), crc32=crc32(content))

    def _close_pack(self) -> None:
        """Writes the kept JPEGs that wait, as one member."""
        if self._pack:
            self._tar.write({"__key__": self._pack_key, PACK: bytes(self._pack)})
            self._position += BLOCK + padded(len(self._pack))
            self._pack.clear()

    def _place(self, content: bytes) -> Member:
        """Where the next member of the tar lies, which has this content."""
        place = Member(offset=self._position + BLOCK, length=len(content), crc32=crc32(content))
        self._position += BLOCK + padded(len(content))
        return place

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None and self._entries:
                self._finish()
        finally:
            self._tar.close()
            self._stream.close()
            self._draft.unlink(missing_ok=True)

    def _finish(self) -> None:
        self._close_pack()
        index = self._index()
        self._tar.write({"__key__": INDEX_KEY, "json": index})
        self._tar.close()
        self._stream.flush()
        os.fsync(self._stream.fileno())
        modalities = [entry.modality for entry in self._entries]
        self.record = ShardRecord(
            name=self.path.name,
            bytes=self._draft.stat().st_size,
            sha256=sha256_of(self._draft),
            index_sha256=hashlib.sha256(index).hexdigest(),
            samples=len(self._entries),
            modalities={name: modalities.count(name) for name in sorted(set(modalities))},
        )
        os.replace(self._draft, self.path)
        write_bytes(self.path.with_name(index_name(self.path.name)), index)

    def _index(self) -> bytes:
        """The content of the index, of the oldest version that knows all that is in it."""
        if any(entry.jpeg is not None for entry in self._entries):
            return pack_index(to_json(ShardIndex(version=WITH_JPEG, samples=self._entries)))
        version = WITH_BLOCKS if any(entry.blocks is not None for entry in self._entries) else VERSION
        return to_json(ShardIndex(version=version, samples=self._entries))


def _mask_member(place: Member, mask: EncodedMask) -> MaskMember:
    encoded, dtype, greys = mask
    return MaskMember(**place.model_dump(), dtype=dtype, stored=encoded.stored, rows=encoded.rows, greys=greys)
