"""A step's metrics, averaged over micro-batches, ranks, samples and by modality, in one reduction."""

from collections.abc import Sequence

import torch
from torch import Tensor

from scanfoundry.pretrain.distributed.world import World, sum_over_ranks


class Averages:
    """Sums and counts of what is not NaN; a metric is a scalar, or one number for each sample (B,).

    Args:
        modalities: all of the run, each with its place in every rank's table, so that the tables have the same
            rows.
    """

    def __init__(self, modalities: Sequence[str], world: World) -> None:
        self._modalities, self._world = modalities, world
        self._sums: dict[str, Tensor] = {}  # (2,) float64 each: sum and count

    def add(self, metrics: dict[str, Tensor], modalities: list[str]) -> None:
        """One micro-batch's metrics, of samples of these modalities; every rank adds the same names."""
        device = self._world.device
        chosen = torch.tensor([[each == name for each in modalities] for name in self._modalities], device=device)
        for name, value in metrics.items():
            known = ~value.isnan()
            counted = torch.stack((torch.where(known, value, 0).double(), known.double()))  # (2,) or (2, B)
            self._count(name, counted.view(2, -1))
            if value.dim():
                for modality, samples in zip(self._modalities, chosen, strict=True):
                    self._count(f"{name}/{modality}", torch.where(samples, counted, 0))

    def _count(self, name: str, counted: Tensor) -> None:
        self._sums[name] = self._sums.get(name, 0) + counted.sum(1)

    def means(self) -> dict[str, float]:
        """By name, and `<name>/<modality>` for modalities with a number; NaN where a metric has none at all."""
        names = sorted(self._sums)
        table = sum_over_ranks(torch.stack([self._sums[name] for name in names]), self._world)
        means = {}
        for name, (total, count) in zip(names, table.tolist(), strict=True):
            if count or name.rpartition("/")[2] not in self._modalities:
                means[name] = total / count if count else float("nan")
        return means
