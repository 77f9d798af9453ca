"""From views to embeddings: one pass through the encoder, and MLP heads with batch norm over all ranks."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from scanfoundry.backbones.protocol import Encoder
from scanfoundry.configs.errors import UserError
from scanfoundry.datasets.batch import Batch
from scanfoundry.pretrain.distributed.collectives import global_moments, rank_and_size


class GlobalBatchNorm1d(nn.BatchNorm1d):
    """`nn.BatchNorm1d` on the concatenated batch of all ranks, in float32 at least; on CPU and GPU.

    torch's SyncBatchNorm is the same on GPUs, and refuses CPU tensors.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Rows (n, F) -> (n, F). Raises ValueError while training where all ranks together have one row."""
        if not self.training:
            return super().forward(x)
        if len(x) * rank_and_size()[1] < 2:
            raise ValueError("batch norm needs two rows or more over all ranks: enlarge the batch")
        with torch.autocast(x.device.type, enabled=False):
            rows = x.to(torch.promote_types(x.dtype, torch.float32))
            mean, variance, count = global_moments(rows)
            self._track(mean.detach(), variance.detach() * count / (count - 1))
            rows = (rows - mean) * (variance + self.eps).rsqrt()
            if self.affine:
                rows = rows * self.weight.to(rows.dtype) + self.bias.to(rows.dtype)
            return rows.to(x.dtype)

    def _track(self, mean: Tensor, unbiased: Tensor) -> None:
        """Move the running statistics, unless a number is not finite: the engine skips such a step."""
        if self.running_mean is None or self.running_var is None or self.momentum is None:
            return
        finite = (mean + unbiased).isfinite()
        for running, new in ((self.running_mean, mean), (self.running_var, unbiased)):
            running.lerp_(torch.where(finite, new.to(running.dtype), running), self.momentum)
        if self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)


def mlp(inputs: int, hidden: int, outputs: int, layers: int, last_norm: bool) -> nn.Sequential:
    """Linear maps without bias, each but the last with batch norm and ReLU; (n, inputs) -> (n, outputs).

    Args:
        last_norm: a batch norm without weights at the end, as in SimCLR and MoCo v3.
    """
    modules: list[nn.Module] = []
    for _ in range(layers - 1):
        modules += [nn.Linear(inputs, hidden, bias=False), GlobalBatchNorm1d(hidden), nn.ReLU()]
        inputs = hidden
    modules.append(nn.Linear(inputs, outputs, bias=False))
    if last_norm:
        modules.append(GlobalBatchNorm1d(outputs, affine=False))
    return nn.Sequential(*modules)


def pooled(encoder: Encoder, views: Sequence[tuple[Tensor, Tensor]]) -> list[Tensor]:
    """One vector (B, pooled_dim) for each scan of each view, a pair of voxels (B, C, D, H, W) and valid.

    Views of one shape go through the encoder together, which no encoder's output depends on: none has batch norm.
    """
    if len({voxels.shape for voxels, _ in views}) > 1:
        return [encoder.pooled(voxels, valid) for voxels, valid in views]
    voxels, valid = (torch.cat(tensors) for tensors in zip(*views, strict=True))
    return list(encoder.pooled(voxels, valid).chunk(len(views)))


def check_pair_count(views: Sequence[Batch]) -> None:
    """Raise UserError where all ranks together have one pair: there is nothing to tell it from."""
    if len(views[0]) * rank_and_size()[1] < 2:
        raise UserError(
            "the objective compares pairs of scans, and there is one in a step of all ranks: "
            "raise data.batch_2d and data.batch_3d, or run more processes"
        )


def same_shape(*pictures: Tensor) -> list[Tensor]:
    """Pictures (B, C, d, h, w) of several sizes, padded with their least value to one; a depth of 1 is repeated."""
    depth, *plane = (max(sizes) for sizes in zip(*(p.shape[2:] for p in pictures), strict=True))
    padded = []
    for picture in pictures:
        if picture.shape[2] == 1:
            picture = picture.expand(-1, -1, depth, -1, -1)
        margins: list[int] = []
        for size, target in zip(reversed(picture.shape[2:]), (plane[1], plane[0], depth), strict=True):
            margins += [(target - size) // 2, target - size - (target - size) // 2]
        padded.append(nn.functional.pad(picture, margins, value=float(picture.min())))
    return padded
