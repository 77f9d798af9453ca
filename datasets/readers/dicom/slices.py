"""A slice as it is given to the converter: what its pixels and its scale are."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from scanfoundry.datasets.readers.dicom.decode import whole_dataset, without_panic
from scanfoundry.datasets.readers.dicom.headers import Survey
from scanfoundry.datasets.readers.dicom.plugin import register
from scanfoundry.datasets.readers.dicom.suppress_warnings import quiet
from scanfoundry.datasets.readers.scan import ReadError

_PLAIN = {"": "<", "1.2.840.10008.1.2": "<", "1.2.840.10008.1.2.1": "<", "1.2.840.10008.1.2.2": ">"}


@dataclass(frozen=True)
class Slice:
    """A file of one plane: `shape` (rows, columns), stored values as `dtype` from `offset` on (-1: compressed)."""

    path: Path
    shape: tuple[int, int]
    dtype: str
    offset: int
    slope: float
    intercept: float

    @classmethod
    def of_survey(cls, file: Survey, path: Path) -> "Slice":
        """`file` as it lies, known to the converter as `path`."""
        readable = file.syntax in _PLAIN and file.pixel_length > 0 and file.bits in (8, 16, 32) and file.samples == 1
        dtype = f"{_PLAIN.get(file.syntax, '<')}{'i' if file.signed else 'u'}{max(8, file.bits) // 8}"
        slope = 1.0 if file.slope is None else file.slope
        offset = file.pixel_offset if readable else -1
        return cls(path, (file.rows, file.columns), dtype, offset, slope, file.intercept or 0.0)

    @classmethod
    def at_the_end(cls, path: Path, pixels: NDArray, scale: tuple[float, float]) -> "Slice":
        """A file just written, whose last element is `pixels` (rows, columns), padded to an even length."""
        dtype = pixels.dtype.newbyteorder("<").str
        offset = path.stat().st_size - pixels.nbytes - pixels.nbytes % 2
        return cls(path, (pixels.shape[0], pixels.shape[1]), dtype, offset, *scale)

    def raw(self) -> NDArray | None:
        """The stored values as they lie in the file; None where they are compressed."""
        if self.offset < 0:
            return None
        values = np.fromfile(self.path, self.dtype, self.shape[0] * self.shape[1], offset=self.offset)
        return values.reshape(self.shape) if values.size == self.shape[0] * self.shape[1] else None

    def decoded(self) -> NDArray:
        """The stored values as pydicom decodes them. ReadError where it cannot."""
        register()
        try:
            with quiet(), without_panic():
                return whole_dataset(self.path).pixel_array
        except Exception as error:  # decoders raise whatever the damage makes them
            raise ReadError("pixels cannot be decoded") from error
