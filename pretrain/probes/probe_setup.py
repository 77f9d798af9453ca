"""The start of a probe: its scans chosen, everything that can be wrong with them checked, their crops read."""

import math
from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from scanfoundry.backbones.protocol import Encoder
from scanfoundry.configs.errors import UserError
from scanfoundry.configs.geometry import Size3D
from scanfoundry.datasets.shards.reader import BadSample, DataSet
from scanfoundry.pretrain.config.probes import ProbeConfig, SegmentationConfig, title
from scanfoundry.pretrain.config.run import PretrainConfig
from scanfoundry.pretrain.distributed.world import World, gather_objects
from scanfoundry.pretrain.probes.images import Images, read_images
from scanfoundry.pretrain.probes.labelled import LabelledScan, choose

HELD = 4  # every so many training patients are those that a segmentation probe chooses its regularisation on


@dataclass(frozen=True)
class Site:
    """What a run knows of patients: hashes of those it trains on, and fingerprints of the keys of these hashes."""

    seen: Container[str]
    keys: frozenset[str]


class ProbeSetup:
    """Everything that is read and checked of one probe at the start of a run."""

    def __init__(self, config: PretrainConfig, probe: ProbeConfig, encoder: Encoder, world: World, site: Site) -> None:
        self.config, self.probe, self.world = config, probe, world
        self.masks = isinstance(probe, SegmentationConfig)
        crop = probe.data.crop
        self.crop: Size3D = (1, crop[0], crop[1]) if len(crop) == 2 else crop
        encoder.check_input(self.crop)
        self.data = DataSet(probe.data.path, config.data.cache)
        target = None if isinstance(probe, SegmentationConfig) else probe.target
        self.chosen = choose(self.data, probe.data, config.data.holdout, self.masks, target)
        self.rows = self._rows()
        self.messages = [self._sizes(), *self._transductive(site)]

    def _rows(self) -> int:
        """Images in a forward pass: no more voxels than a micro-batch of the training has."""
        data, parts = self.config.data, self.world.size * self.config.engine.accumulation
        batches = []
        if data.crop_3d is not None:
            batches.append(data.batch_3d * math.prod(data.crop_3d))
        if data.crop_2d is not None:
            batches.append(data.batch_2d * math.prod(data.crop_2d))
        return max(1, max(batches) // parts // math.prod(self.crop))

    def _sizes(self) -> str:
        counts = [f"{len(self.chosen.side(s))} scans of {len(self.chosen.patients(s))}" for s in (False, True)]
        voxels = len(self.chosen.scans) * math.prod(self.crop) * (4 * self.config.data.channels + 1 + 8 * self.masks)
        return (
            f"probe '{title(self.probe)}': trains on {counts[0]} patients, tests on {counts[1]}; "
            f"{voxels / 2**20:.0f} MiB of crops are kept, over all ranks"
        )

    def _transductive(self, site: Site) -> Iterable[str]:
        test, name = set(self.chosen.patients(test=True)), title(self.probe)
        if seen := {patient for patient in test if patient in site.seen}:
            yield (
                f"probe '{name}': {len(seen)} of {len(test)} test patients are pre-trained on, without labels; its "
                "numbers are not those of unseen patients (data.holdout keeps patients out)"
            )
        elif (key := str(self.data.manifest.parameters.get("site", ""))) and site.keys and key not in site.keys:
            yield f"probe '{name}': its patients are hashed with another key; nothing tells whether they are trained on"

    def read(self, scans: Sequence[LabelledScan]) -> Images:
        """This rank's crops; UserError on every rank where any has a scan that cannot be read."""
        problem, images = "", None
        try:
            channels, intensity = self.config.data.channels, self.config.data.intensity
            images = read_images(self.data, scans, self.crop, channels, intensity, self.masks, self.world)
        except (BadSample, UserError, ValueError) as error:
            problem = str(error)
        for each in gather_objects(problem, self.world):
            if each:
                raise UserError(f"{each}; repair or build the data set again")
        assert images is not None
        return images

    def parts(self) -> tuple[dict[str, Images], dict[str, int], int]:
        """Images by part (fit, held, test) with the masks' values numbered, how many in all, and how many classes."""
        patients = sorted(self.chosen.patients(test=False), key=lambda patient: patient[::-1])
        held = set(patients[::HELD])
        train = self.chosen.side(test=False)
        scans = {
            "fit": [scan for scan in train if scan.entry.patient not in held],
            "held": [scan for scan in train if scan.entry.patient in held],
            "test": self.chosen.side(test=True),
        }
        images = {name: self.read(each) for name, each in scans.items()}
        values = [np.unique(images[name].mask.numpy()) for name in ("fit", "held")]  # type: ignore[union-attr]
        known = np.unique(np.concatenate([np.concatenate(each) for each in gather_objects(values, self.world)]))
        known = known[known > 0]
        if not len(known):
            raise UserError(f"the masks of {self.data.store.shown('')} are empty; there is nothing to find")
        numbered = {name: replace(each, mask=_numbers(each, known)) for name, each in images.items()}
        return numbered, {name: len(each) for name, each in scans.items()}, len(known) + 1


def _numbers(images: Images, known: np.ndarray) -> torch.Tensor:
    """Masks of class numbers: 0, 1 and up in the order of the values `known`; -1 for values that no training scan has.

    int64: they are indices.
    """
    assert images.mask is not None
    values = images.mask.numpy()
    numbers = np.searchsorted(known, values).clip(max=len(known) - 1)
    return torch.from_numpy(np.where(values == 0, 0, np.where(known[numbers] == values, numbers + 1, -1)))
