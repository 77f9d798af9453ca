"""Weights of a network for the same one with larger convolution kernels."""

from collections.abc import Mapping
from typing import Literal

import torch.nn.functional as F
from torch import Tensor

from scanfoundry.configs.errors import UserError

Enlargement = Literal["upkern", "centre"]


def enlarge_state(
    state: Mapping[str, Tensor], like: Mapping[str, Tensor], how: Enlargement
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Weights of a network for the same one with larger kernels (`like`), and for each key what was done.

    upkern: trilinear interpolation to the larger size, without correction of the magnitude (UpKern of MedNeXt, Roy et
    al. 2023): a warm start that does not keep the function. centre: zeros around the small kernel, which keeps it, with
    the padding k // 2.

    Raises:
        UserError: keys or channels differ, or a kernel would shrink.
    """
    if different := sorted(state.keys() ^ like.keys()):
        where = "the weights" if different[0] in state else "the larger network"
        raise UserError(f"{different[0]} is only in {where}; both must have the same layout")
    converted, report = {}, {}
    for key, value in state.items():
        old, new = tuple(value.shape), tuple(like[key].shape)
        converted[key], report[key] = value, "kept"
        if old != new:
            _check_enlargeable(key, old, new)
            converted[key] = _enlarged(value, new, how)
            report[key] = f"enlarged by {how}: {old} -> {new}"
    return converted, report


def _check_enlargeable(key: str, old: tuple[int, ...], new: tuple[int, ...]) -> None:
    if len(old) != 5 or len(new) != 5 or old[:2] != new[:2]:
        raise UserError(f"{key} is {old}, and {new} in the larger network; only the kernel (last 3 axes) may differ")
    if any(o > n or (n - o) % 2 for o, n in zip(old[2:], new[2:], strict=True)):
        raise UserError(f"{key}: a kernel of {old[2:]} cannot grow evenly to {new[2:]}; take a larger odd kernel")


def _enlarged(value: Tensor, new: tuple[int, ...], how: Enlargement) -> Tensor:
    if how == "upkern":
        return F.interpolate(value, size=new[2:], mode="trilinear", align_corners=False)
    margins = [(n - o) // 2 for o, n in zip(value.shape[2:], new[2:], strict=True)]
    return F.pad(value, [margin for m in reversed(margins) for margin in (m, m)])
