"""Features of the frozen encoder for scans that are shared out over the ranks, under any ZeRO stage."""

from collections.abc import Iterator

import torch
from torch import Tensor

from scanfoundry.backbones.protocol import masked_mean
from scanfoundry.pretrain.distributed.collectives import gathered
from scanfoundry.pretrain.distributed.world import World
from scanfoundry.pretrain.engine.averaged_encoder import encoder_of
from scanfoundry.pretrain.engine.engine import Engine
from scanfoundry.pretrain.probes.images import Images, share_of


def feature_maps(engine: Engine, images: Images, rows: int, world: World) -> Iterator[tuple[slice, list[Tensor]]]:
    """`rows` images at a time: which, and their feature maps (B, F, d, h, w) float32 on the device, finest first.

    As many forward passes on every rank, which ZeRO 3 needs. The encoder is called as a module, since that is what
    makes ZeRO 3 bring its weights; in the run's precision, in evaluation mode.
    """
    engine.evaluate()
    bf16 = engine.config.precision == "bf16"
    for first in range(0, len(images), rows):
        part = slice(first, min(first + rows, len(images)))
        voxels = images.voxels[part].to(world.device)
        with torch.no_grad(), torch.autocast(world.device.type, torch.bfloat16, enabled=bf16):
            maps = encoder_of(engine.objective)(voxels)
        yield part, [each.float() for each in maps]
    engine.train()


def pooled_features(engine: Engine, images: Images, count: int, rows: int, world: World) -> Tensor:
    """One vector for each of all ranks' `count` scans, in their order: (count, F) float32 on the CPU."""
    found = []
    for part, maps in feature_maps(engine, images, rows, world):
        found.append(masked_mean(maps[-1], images.valid[part].to(world.device)))
    return in_order(torch.cat(found), count, world)


def in_order(mine: Tensor, count: int, world: World) -> Tensor:
    """Rows (n, ...) of a rank's share, made those of all `count` scans on every rank, on the CPU."""
    rows = gathered(mine).cpu()
    places = [place for rank in range(world.size) for place in share_of(count, rank, world.size)]
    ordered = rows.new_empty((count, *rows.shape[1:]))
    ordered[places] = rows  # a scan that is there twice has the same row twice
    return ordered
