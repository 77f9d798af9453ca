"""Weighted ridge regression from sums over the rows, which ranks add up; several weightings at once."""

from dataclasses import dataclass

import torch
from torch import Tensor

STRENGTHS = (1e-4, 1e-2, 1.0)  # of the penalty, on features of variance 1


@dataclass
class Sums:
    """Over rows x (F features and a last 1) with one-hot targets y (K) and weights w, for each of P weightings.

    squares (P, F + 1, F + 1): sum of w x x'; products (P, F + 1, K): sum of w x y'; float64. Memory:
    8 P (F + 1)^2 bytes.
    """

    squares: Tensor
    products: Tensor

    @classmethod
    def zeros(cls, weightings: int, features: int, classes: int, device: torch.device) -> "Sums":
        """The sums over no rows."""
        rows = (weightings, features + 1)
        squares = torch.zeros(*rows, features + 1, dtype=torch.float64, device=device)
        return cls(squares, torch.zeros(*rows, classes, dtype=torch.float64, device=device))

    def add(self, rows: Tensor, targets: Tensor, weights: Tensor) -> None:
        """Add rows (N, F) of the classes `targets` (N,) int64 with weights (P, N)."""
        x = torch.cat((rows.double(), rows.new_ones(len(rows), 1, dtype=torch.float64)), dim=1)
        y = torch.nn.functional.one_hot(targets, self.products.shape[2]).double()
        for weighting, weight in enumerate(weights.double()):
            weighted = (x * weight[:, None]).t()
            self.squares[weighting] += weighted @ x
            self.products[weighting] += weighted @ y

    def __add__(self, other: "Sums") -> "Sums":
        return Sums(self.squares + other.squares, self.products + other.products)


def ridge(sums: Sums, weighting: int, strength: float) -> tuple[Tensor, Tensor]:
    """Weights (F, K) and intercept (K,), float64, least in the weighted squared error plus the penalty.

    The penalty is strength * |w|^2 on standardised features, beside the mean squared error; the intercept is free.
    """
    squares, products = sums.squares[weighting], sums.products[weighting]
    total = squares[-1, -1]
    mean, target = squares[-1, :-1] / total, products[-1] / total
    covariance = squares[:-1, :-1] / total - torch.outer(mean, mean)
    variance = covariance.diagonal()
    known = variance > 1e-10 * (variance + mean.square())  # a feature that is constant says nothing
    scale = torch.where(known, variance.clamp(min=1e-300).rsqrt(), 0.0)
    matrix = covariance * torch.outer(scale, scale) + strength * torch.eye(len(mean)).to(covariance)
    cross = (products[:-1] / total - torch.outer(mean, target)) * scale[:, None]
    weights = torch.cholesky_solve(cross, torch.linalg.cholesky(matrix)) * scale[:, None]
    return weights, target - mean @ weights
