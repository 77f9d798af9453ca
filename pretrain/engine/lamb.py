"""LAMB (You et al. 2020, arXiv 1904.00962) for parameters that ZeRO has cut into shards.

LAMB scales each parameter's step by the ratio of two norms. Under ZeRO an optimiser sees flat partitions in which
parameters lie side by side, cut anywhere: other implementations take the norm of the whole partition there, which is
another algorithm. Here the norms are those of the parameters, summed over the ranks that hold them.
"""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from scanfoundry.datasets.device import to_device
from scanfoundry.pretrain.checkpoint.parameter_shards import ParameterShard

Sum = Callable[[Tensor], Tensor]


class Segment(NamedTuple):
    """Where a parameter, or a part of it, lies in a flat tensor."""

    number: int  # of the parameter
    offset: int
    numel: int

    def of(self, flat: Tensor) -> Tensor:
        """The segment as a view."""
        return flat.view(-1).narrow(0, self.offset, self.numel)


def is_fused(optimiser: torch.optim.Optimizer) -> bool:
    """Whether an optimiser steps all parameters in one kernel."""
    return bool(optimiser.param_groups[0].get("fused"))


def skips(optimiser: Any) -> bool:
    """Whether an optimiser is to leave out this step; False where its kernel looks at `skip` itself."""
    return optimiser.skip is not None and not is_fused(optimiser) and bool(optimiser.skip)


class Lamb(torch.optim.Optimizer):
    """Algorithm 2 of the paper with bias correction, decoupled weight decay and phi the identity.

    Parameters without weight decay (biases, norms) take plain Adam steps, as in the authors' code. A ratio that one
    of the norms makes zero or infinite is 1. `lay_out` says where cut parameters lie; until then each tensor is a
    parameter. A step whose `skip` () is not 0 changes nothing; on a device the host does not read it.
    """

    skip: Tensor | None = None

    def __init__(
        self, params: Iterable[Any], lr: float, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-6,
        weight_decay: float = 0.01,
    ) -> None:  # fmt: skip
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})
        every = [parameter for group in self.param_groups for parameter in group["params"]]
        self._layout = {id(p): [Segment(row, 0, p.numel())] for row, p in enumerate(every)}
        self._count = len(every)
        self._sum: Sum = lambda values: values

    def lay_out(self, held: list[ParameterShard], numbers: dict[str, int], sum_over_ranks: Sum) -> None:
        """Say which parameters lie where in what is stepped, and how a small tensor is summed over ranks.

        Args:
            numbers: of every parameter one below `len(numbers)`, the same on all ranks.
        """
        self._layout, self._count, self._sum = {}, len(numbers), sum_over_ranks
        for shard in held:
            segment = Segment(numbers[shard.name], shard.offset, shard.numel)
            self._layout.setdefault(id(shard.flat), []).append(segment)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One step; under ZeRO every rank calls it."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        kept = None
        if self._on_host():
            if skips(self):
                return loss
        elif self.skip is not None:
            kept = 1 - self.skip
        for group in self.param_groups:
            if not group["params"]:  # of ZeRO 3, which steps one group after the other
                continue
            flats = [flat for flat in group["params"] if flat.grad is not None]
            directions = {flat: self._direction(flat, group, kept) for flat in flats}
            if group["weight_decay"] != 0:
                self._scale(directions)
            for flat, direction in directions.items():
                if kept is not None:
                    direction.mul_(kept)
                flat.add_(direction, alpha=-group["lr"])
        return loss

    def _on_host(self) -> bool:
        return all(flat.device.type == "cpu" for group in self.param_groups for flat in group["params"])

    def _direction(self, flat: Tensor, group: dict[str, Any], kept: Tensor | None) -> Tensor:
        """Adam's direction plus weight decay, as long as `flat`; kept () is 0 where nothing may change."""
        state, gradient = self.state[flat], flat.grad
        if not state:
            state["step"] = torch.zeros((), device="cpu" if kept is None else flat.device)
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(flat), torch.zeros_like(flat)
        if kept is not None:
            return self._kept_direction(flat, group, kept)
        state["step"] += 1
        (first, second), step = group["betas"], float(state["step"])
        mean = state["exp_avg"].lerp_(gradient, 1 - first)
        square = state["exp_avg_sq"].mul_(second).addcmul_(gradient, gradient, value=1 - second)
        deviation = (square / (1 - second**step)).sqrt_().add_(group["eps"])
        direction = (mean / (1 - first**step)).div_(deviation)
        return direction.add_(flat, alpha=group["weight_decay"])

    def _kept_direction(self, flat: Tensor, group: dict[str, Any], kept: Tensor) -> Tensor:
        """The same without a number that the host reads; the state stays as it is where `kept` is 0."""
        state, (first, second) = self.state[flat], group["betas"]
        assert flat.grad is not None
        gradient = torch.where(kept > 0, flat.grad, 0.0)
        state["step"] += kept
        step = state["step"].double().clamp(min=1)  # before the first step that counts, nothing is divided by 0
        mean = state["exp_avg"].lerp_(gradient, (1 - first) * kept)
        square = state["exp_avg_sq"].mul_(1 - (1 - second) * kept).addcmul_(gradient, gradient, value=1 - second)
        deviation = (square / (1 - second**step)).sqrt_().add_(group["eps"])
        return (mean / (1 - first**step)).div_(deviation).add_(flat, alpha=group["weight_decay"])

    def _scale(self, directions: dict[Tensor, Tensor]) -> None:
        """Multiply the directions, in place, by the ratios of the parameters' norms to the directions' own."""
        segments = [(flat, direction, s) for flat, direction in directions.items() for s in self._layout[id(flat)]]
        device = next(iter(directions)).device if directions else torch.device("cpu")
        squares = torch.zeros(self._count, 2, dtype=torch.float64, device=device)
        if segments:
            pairs = [each.square().sum() for flat, direction, s in segments for each in (s.of(flat), s.of(direction))]
            numbers = to_device(torch.tensor([segment.number for _, _, segment in segments]), device)
            squares[numbers] = torch.stack(pairs).view(-1, 2).double()
        norms = self._sum(squares).sqrt()
        ratios = norms[:, 0] / norms[:, 1]
        usual = (norms > 0).all(dim=1) & ratios.isfinite()
        factors = torch.where(usual, ratios, 1.0).to(device).unbind()
        for _, direction, segment in segments:
            segment.of(direction).mul_(factors[segment.number])
