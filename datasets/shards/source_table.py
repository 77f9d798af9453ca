"""`sources.npy`: what a data set was built from, as keyed hashes and sizes, so that an append reads nothing twice.

Sources that could not be read are in it too. Only the site's key connects a row to a file.
"""

import io
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from scanfoundry.configs.errors import UserError
from scanfoundry.datasets.discovery.sources import PlannedSource
from scanfoundry.datasets.shards.reader import DataSet

_ROW = np.dtype([("order", "S32"), ("size", "<u8")])  # keyed hash of the source's identity; bytes of its files


def source_rows(sources: Sequence[PlannedSource]) -> NDArray[np.void]:
    """A row for each source, in their order."""
    return np.array([(each.order.encode(), each.source.size) for each in sources], _ROW)


def parse_sources(content: bytes, name: str) -> NDArray[np.void]:
    """The table in the bytes of an .npy file.

    Raises:
        UserError: it is damaged; the text names it `name`.
    """
    try:
        rows = np.load(io.BytesIO(content), allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise UserError(f"{name} is damaged; copy or build it again") from error
    if rows.dtype != _ROW or rows.ndim != 1:
        raise UserError(f"{name} is damaged; copy or build it again")
    return np.asarray(rows)


def read_source_table(data: DataSet) -> NDArray[np.void] | None:
    """The table of a data set; None where it was built before there was one.

    Raises:
        UserError: it cannot be read, or is damaged.
    """
    record = data.manifest.sources
    if record is None:
        return None
    return parse_sources(data.store.small(record.file, record.sha256), data.store.shown(record.file))
