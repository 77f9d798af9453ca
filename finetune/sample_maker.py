"""From scans to a sample at the plan's grid; what the cases of all tasks have in common."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from itertools import combinations
from typing import ClassVar, Generic

import numpy as np
import torch
from torch import Tensor

from scanfoundry.configs.errors import UserError
from scanfoundry.configs.geometry import Size3D
from scanfoundry.datasets.readers import Scan
from scanfoundry.finetune.cases.augmentation import vary_intensity
from scanfoundry.finetune.cases.cases import Case
from scanfoundry.finetune.cases.channels import hide_channels, read_channels, stacked
from scanfoundry.finetune.cases.volumes import check_resampled_size, prepared, resize, voxel_mm3
from scanfoundry.finetune.config.study import AugmentationConfig
from scanfoundry.finetune.sample import Sample, TargetT
from scanfoundry.finetune.spec import Spec


class SampleMaker(ABC, Generic[TargetT]):
    """Reads scans, brings them to the grid of a specification, and varies them for training."""

    spec: Spec
    frames_apart: ClassVar[bool] = False  # whether each frame of a file of images is an image of its own

    @abstractmethod
    def shape_of(self, scan: Scan) -> Size3D:
        """The grid (D, H, W) that a scan is brought to."""

    @property
    def in_windows(self) -> bool:
        """Whether scans are brought to the plan's spacing and seen in windows; otherwise they are seen whole."""
        return self.spec.task.windows

    def prepare(self, scans: Sequence[Scan | None]) -> tuple[Tensor, float]:
        """The channels of a case at the plan's grid, and the value outside of them."""
        spec = self.spec
        first = next(scan for scan in scans if scan is not None)
        d, h, w = first.voxels.shape[1:]
        target = self.shape_of(first)
        check_resampled_size((d, h, w), first.spacing, target)
        if len(spec.channels) > 1:
            modalities = spec.modalities or [spec.modality] * len(spec.channels)
            image, fill = stacked(scans, modalities, spec.intensity, spec.grey)
        else:
            image, fill = prepared(first, spec.backbone.in_channels, spec.modality, spec.intensity, spec.grey)
        return torch.from_numpy(resize(image, target)), fill

    def unlabelled(self, scans: Scan | Sequence[Scan | None]) -> Sample[TargetT]:
        """What to predict on: one scan, or one for each channel, None where it is missing.

        UserError where there are not as many as channels, or slices and volumes are mistaken for each other.
        """
        given = [scans] if isinstance(scans, Scan) else list(scans)
        names = self.spec.channels
        if len(given) != len(names) or not any(given):
            raise UserError(f"this model takes {len(names)} channels ({', '.join(names)}), {len(given)} are given")
        first = next(scan for scan in given if scan is not None)
        d, h, w = first.voxels.shape[1:]
        images = first.frames and self.frames_apart
        if (d == 1) != self.spec.plan.is_2d and not (images and self.spec.plan.is_2d):
            kinds = ("a single slice", "volumes") if d == 1 else (f"a volume of {d} slices", "single slices")
            raise UserError(f"the scan is {kinds[0]}, this model takes {kinds[1]}")
        image, fill = self.prepare(given)
        present = torch.tensor([scan is not None for scan in given])
        hidden = None if present.all() else present
        volume = voxel_mm3(first)
        return Sample(image, fill, (d, h, w), first.spacing, first.orientation, None, None, hidden, volume)

    def read(self, case: Case) -> tuple[Scan, Sample[TargetT]]:
        """The scan whose grid is the case's, and its sample, still without target; UserError names the source."""
        scans = read_channels(case.images)
        try:
            sample = self.unlabelled(scans)
        except UserError as error:
            raise UserError(f"{case.image}: {error}") from error
        return next(scan for scan in scans if scan is not None), sample

    def varied(
        self, images: Tensor, samples: Sequence[Sample[TargetT]], rng: np.random.Generator, config: AugmentationConfig
    ) -> Tensor:
        """Intensities of (B, C, *patch) changed, each channel for itself, and channels hidden (modality dropout)."""
        channels = len(self.spec.channels)
        if channels == 1:
            return vary_intensity(images, rng, config)
        changed = vary_intensity(images.flatten(0, 1).unsqueeze(1), rng, config).view(images.shape)
        everything = torch.ones(channels, dtype=torch.bool)
        present = torch.stack([everything if sample.present is None else sample.present for sample in samples])
        fills = torch.tensor([sample.fill for sample in samples])
        return hide_channels(changed, present, fills, rng, config.channel_dropout)

    def mirrors(self) -> list[tuple[int, ...]]:
        """Axes to flip together for each pass of a prediction; the first pass flips none."""
        axes = [axis for axis in self.spec.flip_axes if self.spec.plan.patch[axis] > 1]
        if not self.spec.inference.mirror:
            return [()]
        return [chosen for n in range(len(axes) + 1) for chosen in combinations(axes, n)]
