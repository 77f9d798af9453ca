"""Labelled boxes of one scan."""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from scanfoundry.finetune.boxes.geometry import Boxes


class Findings(NamedTuple):
    """What is to be found in a scan; there may be nothing."""

    boxes: Boxes  # (N, 6) d0 h0 w0 d1 h1 w1
    labels: npt.NDArray[np.int64]  # (N,) index into the classes

    def __len__(self) -> int:
        """How many."""
        return len(self.boxes)
