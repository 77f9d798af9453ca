"""A loss beside its plain restatement."""

from collections.abc import Sequence

import torch
from torch import Tensor


def assert_same_with_gradients(ours: Tensor, plain: Tensor, inputs: Sequence[Tensor]) -> None:
    """Values, and the gradients of their sum with weights that differ, are equal to 1e-10 of their size."""
    torch.testing.assert_close(ours, plain, rtol=1e-10, atol=1e-12)
    probe = torch.linspace(0.5, 2, ours.numel(), dtype=torch.float64).view_as(ours)
    gradients = [torch.autograd.grad((loss * probe).sum(), inputs, retain_graph=True) for loss in (ours, plain)]
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)
