"""What a user says of a build."""

import os
from pathlib import Path
from typing import Annotated

from pydantic import Field, PositiveFloat, PositiveInt

from scanfoundry.configs.base import Config
from scanfoundry.datasets.modality import Modality
from scanfoundry.datasets.shards.encode import Codec
from scanfoundry.datasets.shards.sizes import SHARD_MB

# Those that a scheduler left to this process, where the system can tell.
_CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class BuildOptions(Config):
    """How a data set is built.

    All options but `workers` and `max_bad` decide on its content. Its manifest records them, the key as a fingerprint.
    `labels` and `masks` are what `labels.label_index.open_labels` takes.
    """

    modality: Modality = "unknown"  # of scans whose file does not say
    labels: list[Path] = []  # CSV, COCO, VOC, dataset.json: see labels.label_index
    label_columns: list[str] = []  # of CSV files, to store beside those called class, label, ...: see labels.choice
    allow_identifying: bool = False  # store such a column even where it tells a person
    masks: list[Path] = []  # folders of masks named like the scans, or patterns
    boxes_from_masks: bool = False  # one per connected component
    frames: bool = False  # folders of numbered images are videos
    patient_regex: str | None = None  # see identity.patient_of
    key_file: Path | None = None  # see identity.site_key
    shard_mb: PositiveFloat = SHARD_MB  # of source files per shard
    codec: Codec = "zstd"  # lz4hc: larger, decoded about three times faster
    keep_jpeg: bool = False  # JPEG files stay JPEG, without metadata: see jpeg
    workers: PositiveInt = _CORES
    max_bad: Annotated[float, Field(ge=0, le=1)] = 0.10  # share of sources that may be refused
