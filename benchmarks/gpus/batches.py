"""The batches of a case, of noise: what the loader would hand out."""

from collections.abc import Iterator

import numpy as np
import torch

from gpus.cases import Case
from gpus.parts import Setting
from scanfoundry.configs.geometry import Size3D
from scanfoundry.datasets.batch import Batch
from scanfoundry.datasets.centres import Centres
from scanfoundry.pretrain.config.run import PretrainConfig

MODALITY = "mr"


def kinds(case: Case, setting: Setting) -> Iterator[tuple[str, Size3D, int]]:
    """('2d' or '3d', crop, crops in a micro-batch) of each kind of batch that a case has, on one GPU."""
    config = case.config(setting.small, setting.work)
    data, parts = config.data, config.engine.accumulation
    if data.crop_2d is not None:
        yield "2d", (1, *data.crop_2d), data.batch_2d // parts
    if data.crop_3d is not None:
        yield "3d", data.crop_3d, data.batch_3d // parts


def make_batch(config: PretrainConfig, crop: Size3D, count: int, device: torch.device, labels: bool) -> Batch:
    """Crops of noise as the loader hands them out: of pairs there are twice as many rows."""
    paired = config.data.positives in ("crops", "study")
    rows = 2 * count if paired else count
    generator = torch.Generator().manual_seed(0)
    voxels = torch.randn(rows, config.data.channels, *crop, generator=generator).to(device)
    maps = torch.randint(0, 8, (count, 1, *crop), generator=generator, dtype=torch.uint8)
    names = [str(number) for number in range(rows)]
    return Batch(
        voxels, torch.ones(rows, 1, *crop, dtype=torch.bool, device=device), torch.arange(rows), names,
        [MODALITY] * rows, names, 0, paired,
        centres=Centres(np.full((rows, 3), 0.5, np.float32), np.ones(rows, bool)),
        labels=maps.repeat(rows // count, 1, 1, 1, 1) if labels else None, complete=np.ones(rows, bool),
    )  # fmt: skip
