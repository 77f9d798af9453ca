"""A feature pyramid of the strides that detection planned, over any encoder; 2D scans lose their depth axis here."""

from collections.abc import Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from scanfoundry.backbones.protocol import Encoder
from scanfoundry.configs.geometry import Size3D

WIDTH = 64
FINEST = 2  # a single coarse map (ViT) is offered down to this stride


def available_strides(encoder: Encoder, is_2d: bool) -> list[Size3D]:
    """Strides of the maps that a pyramid can start from, finest first.

    An encoder of one resolution (ViT, Primus) offers also finer ones, upsampled from its map.
    """
    distinct = sorted(set(encoder.feature_strides(is_2d)), key=lambda s: (s[0] * s[1] * s[2], s))
    if len(distinct) == 1:
        while max(finer := _halved(distinct[0])) >= FINEST and finer != distinct[0]:
            distinct.insert(0, finer)
    return distinct


class Pyramid(nn.Module):
    """Top-down feature pyramid (Lin et al. 2017) of WIDTH channels, one map for each of `strides`, finest first.

    Coarser maps than the encoder has are strided from the last. Finer ones than a single map are deconvolved from
    that map, each by its own branch (the simple feature pyramid of ViTDet, Li et al. 2022).
    """

    def __init__(self, encoder: Encoder, is_2d: bool, strides: Sequence[Size3D]) -> None:
        super().__init__()
        self.encoder, self.is_2d, self.out_channels = encoder, is_2d, WIDTH
        own = encoder.feature_strides(is_2d)
        level_of = {stride: i for i, stride in enumerate(own)}  # of equal strides the deepest
        self.levels = [level_of[s] for s in strides if s in level_of]
        lead = 1 if is_2d else 0
        conv: type[nn.Conv2d] | type[nn.Conv3d] = nn.Conv2d if is_2d else nn.Conv3d
        self.lateral = nn.ModuleList(conv(encoder.feature_channels[i], WIDTH, 1) for i in self.levels)
        finer = [s for s in strides if s not in level_of and s[1] < own[-1][1]]
        self.finer = nn.ModuleList(_Deconvolved(encoder.feature_channels[-1], own[-1], s, lead) for s in finer)
        self.smooth = nn.ModuleList(conv(WIDTH, WIDTH, 3, padding=1) for _ in range(len(finer) + len(self.levels)))
        known = len(self.smooth)
        steps: list[Any] = [
            tuple(b // a for a, b in zip(strides[i - 1][lead:], strides[i][lead:], strict=True))
            for i in range(known, len(strides))
        ]
        self.coarser = nn.ModuleList(conv(WIDTH, WIDTH, 3, stride=step, padding=1) for step in steps)

    def forward(self, x: Tensor) -> list[Tensor]:
        """(B, C, H, W) or (B, C, D, H, W) -> maps of WIDTH channels, finest first."""
        features = [f.squeeze(2) if self.is_2d else f for f in self.encoder(x.unsqueeze(2) if self.is_2d else x)]
        maps = [lateral(features[i]) for lateral, i in zip(self.lateral, self.levels, strict=True)]
        for i in range(len(maps) - 1, 0, -1):
            maps[i - 1] = maps[i - 1] + F.interpolate(maps[i], size=maps[i - 1].shape[2:], mode="nearest")
        maps = [branch(features[-1]) for branch in self.finer] + maps
        out = [smooth(level) for smooth, level in zip(self.smooth, maps, strict=True)]
        for step in self.coarser:
            out.append(step(F.relu(out[-1])))
        return out


class _Deconvolved(nn.Sequential):
    """From a map of one stride to one of a finer stride, doubling by doubling: every place gets its own weights."""

    def __init__(self, channels: int, start: Size3D, goal: Size3D, lead: int) -> None:
        up: type[nn.ConvTranspose2d] | type[nn.ConvTranspose3d] = nn.ConvTranspose2d if lead else nn.ConvTranspose3d
        layers: list[nn.Module] = []
        while start != goal:
            following = _halved(start)
            factor = tuple(a // b for a, b in zip(start[lead:], following[lead:], strict=True))
            width = WIDTH if following == goal else 2 * WIDTH
            layers.append(up(channels, width, factor, factor))  # type: ignore[arg-type]
            if following != goal:
                layers += [nn.GroupNorm(8, width), nn.GELU()]
            start, channels = following, width
        super().__init__(*layers)


def _halved(stride: Size3D) -> Size3D:
    """Half the stride on the coarsest axes that can be halved."""
    top = max(s for s in stride)
    d, h, w = (s // 2 if s == top and s % 2 == 0 else s for s in stride)
    return d, h, w
