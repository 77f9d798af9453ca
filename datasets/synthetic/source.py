"""A synthetic source as the sampling plan takes it: like a data set of one modality, without files and patients."""

import hashlib
import json
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from scanfoundry.datasets.shards.table import ROW
from scanfoundry.datasets.synthetic.config import VERSION, SyntheticConfig

MODALITY = "synthetic"


class SyntheticSource:
    """What the plan asks of a source.

    Args:
        config: what is drawn.
        images: whether the run takes images.
        volumes: whether it takes volumes.

    Attributes:
        modalities: of its scans.
        manifest_hash: SHA-256 of what decides on its scans, in place of a manifest's.
    """

    def __init__(self, config: SyntheticConfig, images: bool, volumes: bool) -> None:
        self.config, self.modalities = config, [MODALITY]
        self._flat = [flat for flat, wanted in ((True, images), (False, volumes)) if wanted]
        content = {"version": VERSION, **config.model_dump(mode="json")}
        self.manifest_hash = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    def sample_blocks(self) -> Iterator[NDArray[np.void]]:
        """The rows of `samples`, at once: there are few."""
        return iter([self.samples()])

    def samples(self) -> NDArray[np.void]:
        """A row for each scan of a pass, as many images as volumes where it serves both.

        Rows are there to be counted: the seed of a crop decides on its scan, so that none comes twice. They have no
        patient and are never held out.
        """
        tables = []
        for flat in self._flat:
            table = np.zeros(self.config.scans, ROW)
            table["sample"], table["flat"], table["least"] = np.arange(len(table)), flat, 1.0
            tables.append(table)
        return np.concatenate(tables)
