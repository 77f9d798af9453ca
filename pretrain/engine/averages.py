"""A step's metrics, averaged over micro-batches, ranks, samples and by modality, in one reduction.

The same reduction says whether a loss was not finite on any rank, and carries what else the ranks have to agree upon.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from scanfoundry.datasets.device import HostCopy, to_device
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
        self._bad: Tensor | None = None  # losses that were not finite, () float64

    def add(self, loss: Tensor, metrics: dict[str, Tensor], modalities: list[str]) -> None:
        """One micro-batch's loss and metrics, of samples of these modalities; every rank adds the same names."""
        loss = loss.detach()
        bad = (~loss.isfinite()).double()
        self._bad = bad if self._bad is None else self._bad + bad
        metrics = {"loss": loss, **metrics}
        rows = [[each == name for each in modalities] for name in self._modalities]
        chosen = to_device(torch.tensor(rows), self._world.device)
        for name, value in metrics.items():
            known = ~value.isnan()
            counted = torch.stack((torch.where(known, value, 0).double(), known.double()))  # (2,) or (2, B)
            self._count(name, counted.view(2, -1))
            if value.dim():
                for modality, samples in zip(self._modalities, chosen, strict=True):
                    self._count(f"{name}/{modality}", torch.where(samples, counted, 0))

    def _count(self, name: str, counted: Tensor) -> None:
        self._sums[name] = self._sums.get(name, 0) + counted.sum(1)

    def reduced(self, asked: Sequence[float] = ()) -> "Reduced":
        """The averages over all ranks, each of which calls it after its last micro-batch.

        Args:
            asked: numbers that are summed over the ranks along with them, as many on each.
        """
        assert self._bad is not None, "nothing was added"
        names = sorted(self._sums)
        sums = torch.stack([self._sums[name] for name in names]).flatten()
        parts = [self._bad.view(1), sums]
        if asked:
            parts.insert(1, to_device(torch.tensor([*asked], dtype=torch.float64), sums.device))
        table = sum_over_ranks(torch.cat(parts), self._world)
        return Reduced(names, self._modalities, table)


class Reduced:
    """What `Averages.reduced` found, on its way to the host.

    Attributes:
        skip: () bool on the device, whether a loss was not finite on any rank.
    """

    def __init__(self, names: Sequence[str], modalities: Sequence[str], table: Tensor) -> None:
        self._names, self._modalities, self._table = names, modalities, HostCopy(table)
        self.skip = table[0] > 0

    def read(self) -> tuple[bool, list[float], dict[str, float]]:
        """Whether all losses were finite, the sums of what was `asked`, and the means; waits for the device.

        Means are by name, and by `<name>/<modality>` for modalities with a number; NaN where a metric has none at all.
        """
        bad, *numbers = self._table.read().tolist()
        start, means = len(numbers) - 2 * len(self._names), {}
        for name, total, count in zip(self._names, numbers[start::2], numbers[start + 1 :: 2], strict=True):
            if count or name.rpartition("/")[2] not in self._modalities:
                means[name] = total / count if count else float("nan")
        return not bad, numbers[:start], means
