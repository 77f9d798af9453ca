"""LAMB (You et al. 2020, arXiv 1904.00962) for parameters that ZeRO has cut into shards.

LAMB scales each parameter's step by the ratio of two norms. Under ZeRO an optimiser sees flat partitions in which
parameters lie side by side, cut anywhere: other implementations take the norm of the whole partition there, which is
another algorithm. Here the norms are those of the parameters, summed over the ranks that hold them.
"""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor

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


class Lamb(torch.optim.Optimizer):
    """Algorithm 2 of the paper with bias correction, decoupled weight decay and phi the identity.

    Parameters without weight decay (biases, norms) take plain Adam steps, as in the authors' code. A ratio that one
    of the norms makes zero or infinite is 1. `lay_out` says where cut parameters lie; until then each tensor is a
    parameter.
    """

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
        for group in self.param_groups:
            if not group["params"]:  # of ZeRO 3, which steps one group after the other
                continue
            directions = {flat: self._direction(flat, group) for flat in group["params"] if flat.grad is not None}
            if group["weight_decay"] != 0:
                self._scale(directions)
            for flat, direction in directions.items():
                flat.add_(direction, alpha=-group["lr"])
        return loss

    def _direction(self, flat: Tensor, group: dict[str, Any]) -> Tensor:
        """Adam's direction plus weight decay, as long as `flat`."""
        state, gradient = self.state[flat], flat.grad
        if not state:
            state["step"] = torch.tensor(0.0)
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(flat), torch.zeros_like(flat)
        state["step"] += 1
        (first, second), step = group["betas"], float(state["step"])
        mean = state["exp_avg"].lerp_(gradient, 1 - first)
        square = state["exp_avg_sq"].mul_(second).addcmul_(gradient, gradient, value=1 - second)
        deviation = (square / (1 - second**step)).sqrt_().add_(group["eps"])
        direction = (mean / (1 - first**step)).div_(deviation)
        return direction.add_(flat, alpha=group["weight_decay"])

    def _scale(self, directions: dict[Tensor, Tensor]) -> None:
        """Multiply the directions, in place, by the ratios of the parameters' norms to the directions' own."""
        segments = [(flat, direction, s) for flat, direction in directions.items() for s in self._layout[id(flat)]]
        squares = torch.zeros(self._count, 2, dtype=torch.float64)
        for flat, direction, segment in segments:
            pair = (segment.of(flat).square().sum(), segment.of(direction).square().sum())
            squares[segment.number] = torch.stack(pair)
        norms = self._sum(squares).sqrt()
        ratios = norms[:, 0] / norms[:, 1]
        usual = (norms > 0).all(dim=1) & ratios.isfinite()
        factors = torch.where(usual, ratios, 1.0).tolist()
        for _, direction, segment in segments:
            segment.of(direction).mul_(factors[segment.number])
