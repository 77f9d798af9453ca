"""A synthetic source as the sampling plan takes it: like a data set of one modality, without files and patients."""

import hashlib
import json

import numpy as np
from numpy.typing import NDArray

from scanfoundry.datasets.shards.table import ROW
from scanfoundry.datasets.synthetic.config import VERSION, SyntheticConfig

MODALITY = "synthetic"


class SyntheticSource:
    """What the plan asks of a source.

    Attributes:
        modalities: of its scans.
        manifest_hash: SHA-256 of what decides on its scans, in place of a manifest's.
    """

    modalities = (MODALITY,)

    def __init__(self, config: SyntheticConfig) -> None:
        self.config = config
        content = {"version": VERSION, **config.model_dump(mode="json")}
        self.manifest_hash = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    def samples(self, flat: bool) -> NDArray[np.void]:
        """A row for each scan of one pass, all images (`flat`) or all volumes; nothing in a row decides on its scan."""
        table = np.zeros(self.config.scans, ROW)
        table["sample"] = np.arange(len(table))
        table["flat"] = flat
        return table
