"""PNG for the label map of an image."""

from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from scanfoundry.configs.files import write_whole
from scanfoundry.finetune.predict.outputs import Origin


def save_labels(target: Path, codes: npt.NDArray[np.uint8], origin: Origin) -> None:
    """A label map (1, H, W) of codes, as the numbers of the model's classes."""
    write_labels(target, origin.spec.labels.decode(codes))


def save_fractions(target: Path, values: npt.NDArray[np.floating], origin: Origin) -> None:
    """Numbers from 0 to 1, (1, H, W)."""
    write_fractions(target, values)


def write_labels(target: Path, labels: npt.NDArray[np.integer]) -> None:
    """A label map (1, H, W) as grey of its 8 or 16 bits: the pixel's value is its label."""
    write_whole(target, lambda part: Image.fromarray(labels[0]).save(part, format="PNG"))


def write_fractions(target: Path, values: npt.NDArray[np.floating]) -> None:
    """Numbers from 0 to 1, (1, H, W), as 16-bit grey: 65535 stands for 1."""
    grey = np.round(np.clip(values[0].astype(np.float32), 0, 1) * 65535).astype(np.uint16)
    write_whole(target, lambda part: Image.fromarray(grey).save(part, format="PNG"))
