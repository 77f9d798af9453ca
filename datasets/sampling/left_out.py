"""Leaving out near-duplicates: one scan of each group is sampled, and nothing that resembles a held-out scan is."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from scanfoundry.configs.errors import UserError
from scanfoundry.datasets.shards.near_list import read_near_duplicates
from scanfoundry.datasets.shards.reader import DataSet


@dataclass(frozen=True)
class LeftOut:
    """Rows of a data set's table that are not sampled, (rows,) each.

    Attributes:
        repeats: scans that resemble one that is kept.
        leaks: scans that would be kept, and resemble one of a held-out patient.
    """

    repeats: NDArray[np.bool_]
    leaks: NDArray[np.bool_]

    @property
    def rows(self) -> NDArray[np.bool_]:
        """All of them."""
        return self.repeats | self.leaks


def near_duplicates_of(data: DataSet, source: str, held_out: NDArray[np.bool_]) -> LeftOut:
    """The scans that `near_duplicates: drop` leaves out.

    Args:
        data: of the source.
        source: its name.
        held_out: (rows,) of the table: scans that hold-out patients have.

    Raises:
        UserError: the data set was built before near-duplicates were looked for, or its list is damaged.
    """
    found = read_near_duplicates(data)
    if found is None:
        raise UserError(
            f"source '{source}': {data.store.shown('')} was built before near-duplicates were looked for; build it "
            "into a new folder with 'scanfoundry data build', or set its near_duplicates to keep"
        )
    left = LeftOut(np.zeros(len(held_out), bool), np.zeros(len(held_out), bool))
    for line in found:
        left.repeats[line.row] = True
        left.leaks[line.kept_row] |= held_out[line.row]
    left.repeats[held_out], left.leaks[held_out] = False, False
    return left
