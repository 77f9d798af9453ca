"""One shard from scans: encoding, tar, index. The same scans give the same bytes."""

import hashlib
import os
import zlib
from pathlib import Path
from types import TracebackType
from typing import Literal

import blosc2
from numpy.typing import NDArray

from scanforge.datasets.intensity import statistics
from scanforge.datasets.readers.scan import Scan
from scanforge.datasets.shards.foreground import foreground_bitmap
from scanforge.datasets.shards.format import (
    BLOCK,
    INDEX_KEY,
    VERSION,
    SampleEntry,
    ScanFacts,
    ShardIndex,
    ShardRecord,
    index_name,
    pack_bits,
    padded,
    sha256_of,
    to_json,
    write_atomically,
)

Codec = Literal["zstd", "lz4hc"]
Shape = tuple[int, ...]
_CODECS = {"zstd": (blosc2.Codec.ZSTD, 5), "lz4hc": (blosc2.Codec.LZ4HC, 9)}


def encode(scan: Scan, codec: Codec) -> bytes:
    """The voxels (C, D, H, W) as a contiguous blosc2 frame, in chunks of about 64^3 and blocks of 16 x 32 x 32."""
    depth = scan.voxels.shape[1]
    chunks: Shape = (1, 1, 512, 512) if depth == 1 else (1, 64, 64, 64)
    blocks: Shape = (1, 1, 128, 128) if depth == 1 else (1, 16, 32, 32)
    chunks = tuple(min(a, b) for a, b in zip(chunks, scan.voxels.shape, strict=True))
    blocks = tuple(min(a, b) for a, b in zip(blocks, chunks, strict=True))
    # Shuffling bytes helps nearly always; not floats that are scaled integers, of which a scan has few values.
    filters = [blosc2.Filter.SHUFFLE]
    if scan.voxels.dtype.itemsize > 2:
        filters.append(blosc2.Filter.NOFILTER)
    frames = [_frame(scan.voxels, chunks, blocks, codec, each) for each in filters]
    return min(frames, key=len)


def _frame(voxels: NDArray, chunks: Shape, blocks: Shape, codec: Codec, each: blosc2.Filter) -> bytes:
    kind, level = _CODECS[codec]
    # One thread: the bytes would depend on the number of them.
    parameters = blosc2.CParams(codec=kind, clevel=level, nthreads=1, filters=[each], filters_meta=[0])
    return blosc2.asarray(voxels, chunks=chunks, blocks=blocks, cparams=parameters).to_cframe()


def facts_of(scan: Scan, key: str, modality: str, patient: str) -> ScanFacts:
    """What is kept of `scan` besides its voxels."""
    stats = statistics(scan.voxels)
    bitmap = foreground_bitmap(scan.voxels, stats["threshold"])
    return ScanFacts(
        key=key,
        shape=scan.voxels.shape,
        dtype=scan.voxels.dtype.name,
        spacing=scan.spacing,
        orientation=scan.orientation,
        modality=modality,
        patient=patient,
        stats=stats,
        grid=bitmap.shape,
        foreground=pack_bits(bitmap),
    )


class ShardWriter:
    """Writes `path` (x.tar) and its index beside it; both appear complete when the context ends without an error.

    The index appears last: where it exists, the shard is whole. A shard without scans leaves no file.
    """

    def __init__(self, path: Path, codec: Codec) -> None:
        self.path, self._codec = path, codec
        self._draft = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        self._entries: list[SampleEntry] = []
        self._position = 0
        self.record: ShardRecord | None = None

    def __enter__(self) -> "ShardWriter":
        self._stream = open(self._draft, "wb")
        # Here and not above: it imports torch where that is there (see job.worker).
        from webdataset import TarWriter

        self._tar = TarWriter(self._stream, encoder=False, mtime=0, user="", group="")
        return self

    def add(self, scan: Scan, key: str, modality: str, patient: str) -> None:
        """Appends one scan under `key`."""
        facts, payload = facts_of(scan, key, modality, patient), encode(scan, self._codec)
        content = to_json(facts)
        self._tar.write({"__key__": key, "b2nd": payload, "json": content})
        offset = self._position + BLOCK
        entry = SampleEntry(**facts.model_dump(), offset=offset, length=len(payload), crc32=zlib.crc32(payload))
        self._entries.append(entry)
        self._position += 2 * BLOCK + padded(len(payload)) + padded(len(content))

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
        index = to_json(ShardIndex(version=VERSION, samples=self._entries))
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
        write_atomically(self.path.with_name(index_name(self.path.name)), index)
