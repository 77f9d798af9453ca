"""What the loader hands to the training loop. The only module of `datasets` that imports torch."""

from dataclasses import dataclass, replace

import torch


@dataclass(frozen=True)
class Batch:
    """Crops of one shape: all 2D (D = 1) or all 3D.

    voxels     (B, C, D, H, W) float32, normalised by `intensity.normalise`
    valid      (B, 1, D, H, W) bool, False where the crop reaches beyond the scan
    seeds      (B,) int64, one per sample for augmentation and masking; the same at any world size
    keys, modalities, sources    B strings each: the sample's key, its modality, its source's name
    step       optimiser step since the start of the run that the batch belongs to
    """

    voxels: torch.Tensor
    valid: torch.Tensor
    seeds: torch.Tensor
    keys: list[str]
    modalities: list[str]
    sources: list[str]
    step: int

    def __len__(self) -> int:
        return self.voxels.shape[0]

    @property
    def is_2d(self) -> bool:
        """True where the crops are images (depth 1)."""
        return self.voxels.shape[2] == 1

    def to(self, device: torch.device | str, non_blocking: bool = False) -> "Batch":
        """The same batch with its tensors on `device`."""
        return replace(
            self,
            voxels=self.voxels.to(device, non_blocking=non_blocking),
            valid=self.valid.to(device, non_blocking=non_blocking),
            seeds=self.seeds.to(device, non_blocking=non_blocking),
        )
