"""A whole training step of `mae` on a STU-Net: the same written plainly in torch, and block-sparse SparK, beside it.

command: python benchmarks/mae_unet_step.py [--size B] [--side 128] [--batch 1] [--bf16] [--out mae_unet_step]

A step is forward, backward and AdamW. The peer is the original STU-Net's modules (nearest up-sampling, then a 1x1x1
convolution), a random mask of 16^3 blocks, zeros in the holes and the mean squared error of the hidden voxels. Both
get the same weights and, once, the same masks: their losses and gradients must agree. Then all variants take turns in
one process; medians of the rounds, and the median of the rounds' own ratios to `mae`.
  mae, plain    the same function
  spark light   visible blocks of 32^3 alone, SparK's light decoder
  spark own     the same, the backbone's own decoder
"""

import argparse
from collections.abc import Callable
from itertools import pairwise
from statistics import median
from typing import Any, cast

import torch
import torch.nn.functional as F
from record import record
from timing import seconds
from torch import Tensor, nn

from scanfoundry.backbones.registry import build
from scanfoundry.backbones.stunet import STUNetConfig
from scanfoundry.datasets.batch import Batch
from scanfoundry.pretrain.objectives import Objective
from scanfoundry.pretrain.objectives.mae import MAEConfig
from scanfoundry.pretrain.objectives.mae_unet import UNetMAE
from scanfoundry.pretrain.objectives.spark import SparkConfig

RATIO, BLOCK = 0.75, 16
NAMES = {"encoder.": "", "decoder.": "", "head.": "head."}  # ours in the peer's words


class Block(nn.Module):
    """The original's residual block."""

    def __init__(self, channels: int, out_channels: int, stride: int = 1, project: bool = False) -> None:
        super().__init__()
        self.conv1 = nn.Conv3d(channels, out_channels, 3, stride, 1)
        self.norm1 = nn.InstanceNorm3d(out_channels, affine=True)
        self.act1 = nn.LeakyReLU(inplace=True)
        self.conv2 = nn.Conv3d(out_channels, out_channels, 3, 1, 1)
        self.norm2 = nn.InstanceNorm3d(out_channels, affine=True)
        self.act2 = nn.LeakyReLU(inplace=True)
        self.conv3 = nn.Conv3d(channels, out_channels, 1, stride) if project else None

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels, D, H, W) -> (B, out_channels, D', H', W')."""
        y = self.norm2(self.conv2(self.act1(self.norm1(self.conv1(x)))))
        return self.act2(y + (x if self.conv3 is None else self.conv3(x)))


class Up(nn.Module):
    """Nearest up-sampling, then a convolution."""

    def __init__(self, channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv3d(channels, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels, d, h, w) -> (B, out_channels, 2d, 2h, 2w)."""
        return self.conv(F.interpolate(x, scale_factor=2, mode="nearest"))


class PlainMAE(nn.Module):
    """The U-Net and the loss in a few lines."""

    def __init__(self, config: STUNetConfig) -> None:
        super().__init__()
        widths, depth = config.channels, config.depth

        def stage(i: int, o: int, stride: int = 1) -> nn.Sequential:
            return nn.Sequential(Block(i, o, stride, True), *(Block(o, o) for _ in range(depth - 1)))

        inputs = (config.in_channels, *widths[:-1])
        self.conv_blocks_context = nn.ModuleList(
            stage(i, o, 1 if level == 0 else 2) for level, (i, o) in enumerate(zip(inputs, widths, strict=True))
        )
        pairs = list(pairwise(widths[::-1]))
        self.upsample_layers = nn.ModuleList(Up(i, o) for i, o in pairs)
        self.conv_blocks_localization = nn.ModuleList(stage(2 * o, o) for _, o in pairs)
        self.head = nn.Conv3d(widths[0], config.in_channels, 1)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """The loss of scans (B, 1, D, H, W); mask (B, 1, d, h, w) of 1 where hidden, drawn where it is absent."""
        if mask is None:
            grid = [n // BLOCK for n in x.shape[2:]]
            order = torch.rand(len(x), grid[0] * grid[1] * grid[2], device=x.device).argsort(dim=1)
            mask = (order < RATIO * order.shape[1]).float().view(-1, 1, *grid)
        hidden = F.interpolate(mask, scale_factor=BLOCK, mode="nearest")
        y, skips = x * (1 - hidden), []
        for stage in self.conv_blocks_context:
            y = stage(y)
            skips.append(y)
        for up, stage, skip in zip(
            self.upsample_layers, self.conv_blocks_localization, reversed(skips[:-1]), strict=True
        ):
            y = stage(torch.cat((up(y), skip), dim=1))
        error = (self.head(y).float() - x).square()
        return (error * hidden).sum() / hidden.sum()

    def take(self, ours: UNetMAE) -> None:
        """Our weights under the names here."""
        self.load_state_dict({renamed(key): value for key, value in ours.state_dict().items()})


def renamed(key: str) -> str:
    """The peer's name of a weight of ours."""
    start = next(start for start in NAMES if key.startswith(start))
    return NAMES[start] + key.removeprefix(start)


def agree(ours: UNetMAE, plain: PlainMAE, batch: Batch) -> None:
    """Both losses, and their gradients, with our masks and the same weights, to float32's rounding."""
    plain.take(ours)
    one = ours(batch)[0]
    other = plain(batch.voxels, ours.mask(batch).float())
    torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    one.backward()
    other.backward()
    theirs = dict(plain.named_parameters())
    for name, parameter in ours.named_parameters():
        if parameter.dim() > 1:
            a, b = cast(Tensor, parameter.grad), cast(Tensor, theirs[renamed(name)].grad)
            assert float((a - b).norm()) <= 1e-2 * float(b.norm()) + 1e-6, name


def variants(config: STUNetConfig, batch: Batch, device: str) -> dict[str, tuple[nn.Module, Callable[[], Tensor]]]:
    """Each variant's network and its loss."""
    torch.manual_seed(0)
    spark = {"mask_ratio": RATIO, "block_3d": (32, 32, 32), "normalise_target": False}
    configs = {
        "mae": MAEConfig(mask_ratio=RATIO, block_3d=(BLOCK,) * 3),
        "spark light": SparkConfig.model_validate(spark),
        "spark own": SparkConfig.model_validate(spark | {"decoder": "own"}),
    }
    ours: dict[str, Objective] = {name: each.build(build(config)).to(device) for name, each in configs.items()}
    plain = PlainMAE(config).to(device)
    agree(cast(UNetMAE, ours["mae"]), plain, batch)
    found: dict[str, tuple[nn.Module, Callable[[], Tensor]]] = {
        name: (each, lambda each=each: each(batch)[0]) for name, each in ours.items()
    }
    return found | {"plain": (plain, lambda: plain(batch.voxels))}


def stepping(model: nn.Module, loss: Callable[[], Tensor], bf16: bool, device: str) -> Callable[[], None]:
    """A step."""
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-4)

    def run() -> None:
        optimiser.zero_grad(set_to_none=True)
        with torch.autocast(device, torch.bfloat16, enabled=bf16):
            value = loss()
        value.backward()
        optimiser.step()

    return run


def options() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=("S", "B", "L", "H"), default="B")
    parser.add_argument("--side", type=int, default=128, help="of the crop, a multiple of 32, at least 64")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--bf16", action="store_true")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", help="name of the JSON in benchmarks/results; without it nothing is written")
    return parser.parse_args()


def main() -> None:
    """Measure, print a table, and with --out write JSON."""
    given = options()
    shape = (given.batch, 1, given.side, given.side, given.side)
    voxels = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    names = [str(number) for number in range(given.batch)]
    valid, seeds = torch.ones_like(voxels, dtype=torch.bool), torch.arange(given.batch)
    batch = Batch(voxels, valid, seeds, names, names, names, 0).to(given.device)
    cases = variants(STUNetConfig(size=given.size), batch, given.device)
    steps = {name: stepping(model, loss, given.bf16, given.device) for name, (model, loss) in cases.items()}
    for call in steps.values():
        call()
    times: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(given.rounds):
        for name in list(steps)[:: 1 if turn % 2 else -1]:
            times[name].append(seconds(steps[name], given.device))
    result: dict[str, Any] = {"size": given.size, "side": given.side, "batch": given.batch, "bf16": given.bf16}
    result |= {"device": given.device, "threads": torch.get_num_threads()}
    for name, values in times.items():
        ratios = [value / own for value, own in zip(values, times["mae"], strict=True)]
        row = {"seconds": median(values), "least": min(values), "most": max(values), "times mae": median(ratios)}
        result[name] = {key: round(value, 4) for key, value in row.items()}
        print(f"{name:12} {result[name]}", flush=True)
    if given.out:
        record(given.out, result)


if __name__ == "__main__":
    main()
