"""What tasks share that see a scan as a whole, fitted into the patch: one class or one number of each."""

from collections.abc import Sequence
from typing import cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from scanfoundry.configs.geometry import Size3D
from scanfoundry.datasets.augment.window import PatchWindow, extract, identity_patch
from scanfoundry.datasets.readers import Scan
from scanfoundry.finetune.cases.augmentation import random_matrix, random_warp
from scanfoundry.finetune.config.study import AugmentationConfig
from scanfoundry.finetune.heads.whole_scan import WholeScanModel
from scanfoundry.finetune.sample import Sample, TargetT, centred, fitted_shape, upright
from scanfoundry.finetune.task import Adapter, PredictionT, TaskModel


class WholeScan(Adapter[TargetT, PredictionT]):
    """From scan to batch, to the outputs of all members and mirrorings, and to a picture."""

    def shape_of(self, scan: Scan) -> Size3D:
        """Scaled to fit into the patch."""
        d, h, w = scan.voxels.shape[1:]
        return fitted_shape((d, h, w), scan.spacing, self.spec.plan)

    def augmented(
        self, samples: Sequence[Sample[TargetT]], rng: np.random.Generator, config: AugmentationConfig
    ) -> Tensor:
        """Images (B, C, *patch), turned, zoomed, mirrored and varied in intensity; a pure function of `rng`."""
        images = []
        for sample in samples:
            d, h, w = sample.image.shape[1:]
            still = identity_patch((d, h, w), self.spec.plan.patch)
            matrix = random_matrix(rng, config, self.spec.plan.spacing, self.spec.plan.is_2d, turn=True)
            warp = random_warp(rng, config, self.spec.plan.spacing, still.size)
            images.append(extract(sample.image, PatchWindow(still.centre, matrix, still.size, warp), sample.fill))
        return self.varied(torch.stack(images), samples, rng, config)

    @torch.inference_mode()
    def passes(self, members: Sequence[TaskModel], sample: Sample[TargetT], device: torch.device) -> Tensor:
        """The networks' outputs, one row for every member and mirroring: (P, ...) float64 on the CPU."""
        if sample.features is not None and self.mirrors() == [()]:
            known = sample.features[None].float().to(device)
            return torch.cat([cast(WholeScanModel, member).head(known).double().cpu() for member in members])
        image = centred(sample, self.spec.plan).to(device)
        flipped = [image.flip([axis + 2 for axis in axes]) for axes in self.mirrors()]
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            return torch.cat([member(view).double().cpu() for member in members for view in flipped])

    def middle_slice(self, sample: Sample[TargetT]) -> npt.NDArray[np.float16]:
        """Along the shortest axis."""
        image = sample.image[0].numpy()
        axis = int(np.argmin(image.shape))
        middle = upright(np.take(image, image.shape[axis] // 2, axis), sample.orientation, axis)
        return middle.astype(np.float16)
