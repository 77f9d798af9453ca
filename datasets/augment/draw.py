"""What is drawn for each sample: a pure function of its seed, its modality's settings and the number of the view."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from scanfoundry.datasets.augment.config import AugmentConfig
from scanfoundry.datasets.augment.transforms import KINDS
from scanfoundry.datasets.crop import mix

_SALT = 0x5CA17  # parts these draws from those of masks, which have the same seeds
_PLACE = 3  # uniform numbers for the window's place
_COUNT = {name: len(kind().ranges()) for name, kind in KINDS.items()}
_STARTS = dict(zip(KINDS, np.cumsum([_PLACE + len(KINDS), *_COUNT.values()]).tolist(), strict=False))
_TOTAL = _PLACE + len(KINDS) + sum(_COUNT.values())


@dataclass(frozen=True)
class Drawn:
    """The draws of B samples.

    Attributes:
        place: (B, 3) in [0, 1): where the view's window lies along D, H, W.
        on: by transform: (B,) bool, whether the sample gets it.
        values: by transform: (B, n) float64 within its `ranges`.
        keys: (B, 2) int32, of the sample's noise.
    """

    place: NDArray[np.float64]
    on: dict[str, NDArray[np.bool_]]
    values: dict[str, NDArray[np.float64]]
    keys: NDArray[np.int32]


class Drawer:
    """Draws by one configuration; the bounds of each modality are looked up once."""

    def __init__(self, config: AugmentConfig) -> None:
        self._config = config
        self._bounds: dict[str, NDArray[np.float64]] = {}  # (3, slots): low, extent; probabilities in the third
        self._philox = np.random.Philox(key=0)
        self._state = self._philox.state

    def __call__(self, seeds: Sequence[int], modalities: Sequence[str], view: int) -> Drawn:
        """The draws of B samples with these seeds and modalities."""
        raw = np.stack([self._raw(mix(seed, view, _SALT)) for seed in seeds])
        uniform = (raw[:, 1:] >> np.uint64(11)).astype(np.float64) * 2.0**-53
        low, extent, probability = np.stack([self._of(modality) for modality in modalities], 1)
        values = low + uniform * extent
        on = uniform < probability
        return Drawn(
            place=uniform[:, :_PLACE],
            on={name: on[:, _PLACE + number] for number, name in enumerate(KINDS)},
            values={name: values[:, start : start + _COUNT[name]] for name, start in _STARTS.items()},
            keys=raw[:, :1].astype("<u8").view("<i4").astype(np.int32),
        )

    def _raw(self, key: int) -> NDArray[np.uint64]:
        """The stream of np.random.Philox(key=key), without the 0.3 ms that its constructor takes."""
        self._state["state"]["key"][0] = key
        self._philox.state = self._state
        return self._philox.random_raw(1 + _TOTAL)

    def _of(self, modality: str) -> NDArray[np.float64]:
        if modality not in self._bounds:
            transforms = self._config.of(modality)
            bounds = np.zeros((3, _TOTAL))
            for number, (name, start) in enumerate(_STARTS.items()):
                chosen = getattr(transforms, name)
                if chosen is not None and _COUNT[name]:
                    low, high = np.array(chosen.ranges()).T
                    bounds[:2, start : start + _COUNT[name]] = low, high - low
                bounds[2, _PLACE + number] = chosen.probability if chosen is not None else 0.0
            self._bounds[modality] = bounds
        return self._bounds[modality]
