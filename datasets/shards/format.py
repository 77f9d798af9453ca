"""The shard format: what lies in an index and in a manifest, and where a member lies in a tar.

A shard is an uncompressed USTAR tar. Per scan: `<key>.b2nd` (a contiguous blosc2 frame), `<key>.json`,
`<key>.mask.b2nd` where it has a mask, and `<key>.blocks` where the scan is large (see `blocks`). The last member,
`__index__/index.json`, holds the same bytes as the file `<shard>.idx.json` beside the tar. JPEGs that stay JPEG (see
`jpeg`) lie behind each other in members `<key of the first>.pack`, each followed by its mask where it has one; their
facts are in the index alone, which then is compressed (see `packed_index`). A data set is a folder of
shards with one `manifest.json` and one `samples.npy`, which says of each scan what the sampling plan needs, so that a
million scans are planned without their indices. Where scans were appended, the manifest names the newest tables,
`samples-000001.npy` and so on, and its parent.
"""

import base64
from typing import Annotated, Any, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, ValidationError

from scanfoundry.configs.errors import UserError
from scanfoundry.configs.geometry import Size3D
from scanfoundry.datasets.readers.labels import Greys
from scanfoundry.datasets.shards.encode import Levels

VERSION: Literal[2] = 2
WITH_BLOCKS: Literal[3] = 3  # of an index where a scan has a table of blocks, which version 2 did not know
WITH_JPEG: Literal[4] = 4  # of an index where a scan is kept as JPEG, which is compressed
MANIFEST_WITH_JPEG: Literal[3] = 3  # of a data set that has such a shard
BLOCK = 512  # of a tar: every header is one, every payload is padded to whole ones
INDEX_KEY = "__index__/index"
MANIFEST = "manifest.json"
SAMPLES = "samples.npy"
NEAR_DUPLICATES = "near_duplicates.csv"
SOURCES = "sources.npy"

Key = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]+$")]
Dtype = Annotated[str, Field(pattern=r"^(u?int(8|16|32|64)|float(16|32|64))$")]
Hash = Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]
OptionalHash = Annotated[str, Field(pattern=r"^([0-9a-f]{32})?$")]
FactName = Annotated[str, Field(pattern=r"^(manufacturer|model|body_part|sequence)$")]
WarningName = Annotated[str, Field(pattern=r"^(burned_in_annotation|face|labels_differ)$")]
NotNegativeInt = Annotated[int, Field(ge=0)]
Size = Annotated[int, Field(ge=1)]
Text = Annotated[str, Field(max_length=64)]
T = TypeVar("T", bound=BaseModel)


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class BoxRecord(_Record):
    """`low` <= voxel < `high` along D, H, W."""

    low: tuple[FiniteFloat, FiniteFloat, FiniteFloat]
    high: tuple[FiniteFloat, FiniteFloat, FiniteFloat]
    label: Text


class LabelRecord(_Record):
    """What is known of a scan besides its voxels and its mask; see `labels.Labels`."""

    names: dict[int, Text] = {}
    boxes: list[BoxRecord] | None = None
    classes: dict[Text, Text] = {}
    targets: dict[Text, FiniteFloat] = {}


class ScanFacts(_Record):
    """The whitelist: all that is kept of a scan besides its voxels. It is the content of `<key>.json`."""

    key: Key
    shape: tuple[Size, Size, Size, Size]  # C, D, H, W
    dtype: Dtype  # of the voxels
    stored: Dtype  # of the numbers in the frame
    levels: Levels | None = None  # how these become voxels, where a change of dtype is not all
    rows: bool = False  # the numbers of a row (along W) are differences from the row above, modulo 256
    jpeg: NotNegativeInt | None = None  # crc32 of the pixels (H, W, C) of a kept JPEG; None: a blosc2 frame is stored
    spacing: tuple[FiniteFloat, FiniteFloat, FiniteFloat] = (1.0, 1.0, 1.0)  # D, H, W in mm; 1 where unknown
    orientation: Annotated[str, Field(pattern=r"^([RLAPSI]{3})?$")] = ""
    frames: bool = False  # D counts frames of a video
    modality: Annotated[str, Field(pattern=r"^[a-z0-9_-]+$")]
    patient: Hash
    study: OptionalHash = ""  # keyed, of patient and study; '' in builds from before studies were kept
    also: list[Hash] = []  # other patients under whom the same voxels were found
    split: Annotated[str, Field(pattern=r"^(train|val|test)?$")] = ""
    facts: dict[FactName, Text] = {}
    warnings: list[WarningName] = []
    labels: LabelRecord | None = None
    stats: dict[str, FiniteFloat]
    grid: tuple[Size, Size, Size]  # cells of the foreground bitmap along D, H, W
    foreground: str  # base64 of the packed bits of the bitmap, C order


class Member(_Record):
    """Where the payload of a member lies in the tar."""

    offset: NotNegativeInt
    length: Size
    crc32: NotNegativeInt


class MaskMember(Member):
    """The mask (D, H, W) of a scan, unsigned integers on its grid; `greys` as in `labels.Labels`."""

    dtype: Dtype
    stored: Dtype
    rows: bool = False
    greys: Greys = ""


class SampleEntry(ScanFacts, Member):
    """A scan in a shard's index: its facts, and where its voxels and its mask lie in the tar."""

    mask: MaskMember | None = None
    blocks: Member | None = None  # the table of its blocks; large scans of builds from before it have none
    content: Hash  # of shape, dtype and voxels: equal for exact duplicates only

    def scan_facts(self) -> ScanFacts:
        """What `<key>.json` holds of it."""
        return ScanFacts(**{name: getattr(self, name) for name in ScanFacts.model_fields})

    def all_patients(self) -> list[str]:
        """Everyone under whom these voxels were found."""
        return [self.patient, *self.also]


class ShardIndex(_Record):
    version: Literal[2, 3, 4]
    samples: list[SampleEntry]


class ShardRecord(_Record):
    """A shard in the manifest."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]+\.tar$")]
    bytes: Size
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    index_sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    samples: Size
    modalities: dict[str, Size]


class FinalShard(_Record):
    """While a build ends: what became of a shard; `record` is None where all its scans were duplicates."""

    record: ShardRecord | None = None


class NearDuplicateRecord(_Record):
    """What is known of `near_duplicates.csv`: see `near_list`."""

    file: Annotated[str, Field(pattern=r"^near_duplicates(-[0-9]{6})?\.csv$")] = NEAR_DUPLICATES
    scans: NotNegativeInt  # that it would leave out
    others: NotNegativeInt  # of these, scans that resemble one of another patient
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class SourcesRecord(_Record):
    """The table of what was read, see `source_table`."""

    file: Annotated[str, Field(pattern=r"^sources(-[0-9]{6})?\.npy$")] = SOURCES
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class ParentRecord(_Record):
    """The manifest that a data set had before scans were appended; its shards are the first ones, as they were."""

    file: Annotated[str, Field(pattern=r"^manifest-[0-9]{6}\.json$")]
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    scans: Size
    shards: Size


class Manifest(_Record):
    """What a data set holds.

    Attributes:
        also: patients under whom only duplicates were found, or duplicates too.
        later: patients under whom the voxels of a row were found again by an append, which leaves its shard as it is.
        greys: masks by how they were drawn, see `labels.Labels`.
        samples: the file of the table.
        near_duplicates: None of a build from before they were looked for; `sources` likewise.
        parent: None of a build that appended to no other one.
    """

    version: Literal[2, 3]
    tool: str
    parameters: dict[str, Any]
    scans: Size
    patients: Size
    also: list[Hash] = []
    later: dict[NotNegativeInt, list[Hash]] = {}
    modalities: dict[str, Size]
    warnings: dict[str, Size] = {}
    greys: dict[str, Size] = {}
    samples: Annotated[str, Field(pattern=r"^samples(-[0-9]{6})?\.npy$")] = SAMPLES
    samples_sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    near_duplicates: NearDuplicateRecord | None = None
    sources: SourcesRecord | None = None
    parent: ParentRecord | None = None
    shards: Annotated[list[ShardRecord], Field(min_length=1)]


def padded(length: int) -> int:
    """Bytes that a payload of `length` takes in a tar."""
    return -(-length // BLOCK) * BLOCK


def index_name(shard: str) -> str:
    """Name of the index file beside the shard `shard` ('x.tar' -> 'x.idx.json')."""
    return shard.removesuffix(".tar") + ".idx.json"


def to_json(record: BaseModel, indent: int | None = None) -> bytes:
    """`record` as UTF-8 JSON that is the same for the same content; what has its default value is left out."""
    return record.model_dump_json(indent=indent, exclude_defaults=True).encode()


def parse(model: type[T], content: bytes, name: str) -> T:
    """`content` as `model`; UserError names `name` where it is damaged or of another version."""
    try:
        return model.model_validate_json(content)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        if place == "version":
            raise UserError(
                f"{name} has a format version that this scanfoundry does not read: build the data set again"
            ) from error
        raise UserError(
            f"{name} is damaged ({place or 'content'}: {first['msg']}); build the data set again"
        ) from error


def pack_bits(bitmap: NDArray[np.bool_]) -> str:
    """A boolean array as base64 of its packed bits."""
    return base64.b64encode(np.packbits(bitmap).tobytes()).decode()


def unpack_bits(text: str, grid: Size3D) -> NDArray[np.bool_]:
    """Inverse of `pack_bits` for an array of shape `grid`.

    Raises:
        ValueError: `text` is of another size.
    """
    count = grid[0] * grid[1] * grid[2]
    packed = np.frombuffer(base64.b64decode(text, validate=True), np.uint8)
    if packed.size != -(-count // 8):
        raise ValueError(f"{packed.size} bytes for a bitmap of {count} cells")
    return np.unpackbits(packed, count=count).astype(bool).reshape(grid)
