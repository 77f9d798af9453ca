"""Block-sparse SparK against what public implementations do, side by side in one process; medians of rounds in turn.

command: python benchmarks/block_sparse.py [--rounds 5] [--backbone stunet|mednext] [--device cpu|cuda] [--bf16]
encoder: forward and backward of the encoder at 128^3 with blocks of 32^3, at 75% and 60% masked, and in 2D:
  packed      visible blocks alone (scanfoundry.pretrain.sparse)
  multiplied  the dense encoder, every convolution's output multiplied by the mask and every norm over gathered
              visible voxels, as the public SparK and nnssl do
  unmasked    the dense encoder as it is; `unmasked_last` the same on channels-last memory
step: the whole objective with the light decoder, against the multiplied encoder with the backbone's full decoder.
crossover: one residual block of equal work at each block size, packed by convolution, packed by matrix product, dense.
Memory is the growth of the process's peak over what it is with model and scan loaded (gradients included), each
variant in a process of its own; on CUDA the peak of the allocator.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from record import record
from torch import Tensor, nn

from scanfoundry.backbones.layers.convolution import DepthFreeConv3d
from scanfoundry.backbones.mednext import MedNeXtConfig
from scanfoundry.backbones.protocol import Encoder
from scanfoundry.backbones.registry import build
from scanfoundry.backbones.stunet import STUNetConfig
from scanfoundry.datasets.batch import Batch
from scanfoundry.pretrain.masking import block_mask, enlarge
from scanfoundry.pretrain.objectives.spark import SparkConfig
from scanfoundry.pretrain.sparse import convolution
from scanfoundry.pretrain.sparse.blocks import ActiveBlocks
from scanfoundry.pretrain.sparse.encoders import packed_features

KINDS = {"3d": (1, (128, 128, 128), (32, 32, 32)), "2d": (4, (1, 512, 512), (1, 32, 32))}  # batch, crop, block
BACKBONES = {
    "stunet": STUNetConfig(size="B"),
    "mednext": MedNeXtConfig(size="S"),
}


class Multiplied:
    """Hooks that make a dense encoder a masked one as public SparK does: multiply after, gather for norms."""

    def __init__(self, encoder: nn.Module) -> None:
        self.mask = torch.ones(())
        for module in encoder.modules():
            if isinstance(module, nn.Conv3d):
                module.register_forward_hook(self._multiply)
            elif isinstance(module, nn.InstanceNorm3d | nn.GroupNorm):
                module.forward = partial(self._norm, module)  # type: ignore[method-assign]

    def _active(self, x: Tensor) -> Tensor:
        factor = [n // m for n, m in zip(x.shape[2:], self.mask.shape[2:], strict=True)]
        return enlarge(self.mask, (factor[0], factor[1], factor[2]))

    def _multiply(self, module: nn.Module, inputs: object, x: Tensor) -> Tensor:
        return x * self._active(x)

    def _norm(self, norm: nn.InstanceNorm3d | nn.GroupNorm, x: Tensor) -> Tensor:
        channels_last = x.movedim(1, -1)
        out = torch.zeros_like(channels_last)
        active = self._active(x)[:, 0].bool()
        for sample in range(len(x)):
            rows = channels_last[sample][active[sample]]  # (n, C)
            normed = F.instance_norm(rows.T[None], weight=norm.weight, bias=norm.bias, eps=norm.eps)
            out[sample][active[sample]] = normed[0].T.to(out.dtype)
        return out.movedim(-1, 1)


class Case:
    """One backbone on one kind of crop: functions that give the feature maps of each variant."""

    def __init__(self, backbone: str, kind: str, ratio: float, device: str) -> None:
        torch.manual_seed(0)
        batch, shape, self.block = KINDS[kind]
        self.config, self.device, self.ratio = BACKBONES[backbone], device, ratio
        self.voxels = torch.randn(batch, 1, *shape, device=device)
        grid = [n // b for n, b in zip(shape, self.block, strict=True)]
        self.hidden = block_mask(torch.arange(batch), (grid[0], grid[1], grid[2]), ratio).to(device)
        self.encoders: dict[str, Encoder] = {}

    def encoder(self, variant: str) -> Encoder:
        if variant not in self.encoders:
            self.encoders[variant] = build(self.config).to(self.device)
        return self.encoders[variant]

    def features(self, variant: str) -> Callable[[], list[Tensor]]:
        encoder, voxels = self.encoder(variant), self.voxels
        if variant == "packed":
            return lambda: packed_features(encoder, voxels, ActiveBlocks(~self.hidden))
        if variant == "multiplied":
            hooks = Multiplied(encoder)

            def dense() -> list[Tensor]:
                hooks.mask = (~self.hidden).to(voxels.dtype)
                return encoder(voxels * enlarge(hooks.mask, self.block))

            return dense
        if variant == "unmasked_last":
            voxels = voxels.to(memory_format=torch.channels_last_3d)
        return lambda: encoder(voxels)

    def step(self, variant: str) -> Callable[[], Tensor]:
        """The loss of a whole step."""
        names = [str(i) for i in range(len(self.voxels))]
        valid = torch.ones_like(self.voxels, dtype=torch.bool)
        seeds = torch.arange(len(names))
        batch = Batch(self.voxels, valid, seeds, names, ["ct"] * len(names), ["a"] * len(names), 0)
        blocks = {"block_2d": self.block[1:]} if self.block[0] == 1 else {"block_3d": self.block}
        if variant == "packed":
            objective = SparkConfig(mask_ratio=self.ratio, **blocks).build(self.encoder("packed")).to(self.device)
            return lambda: objective(batch)[0]
        encode = self.features("multiplied")
        whole = self.encoder("multiplied").decoder(1)
        whole.deep_supervision = False
        whole.to(self.device)

        def loss() -> Tensor:
            predicted = whole.logits(encode())
            weight = enlarge(self.hidden, self.block).to(predicted.dtype)
            return ((predicted - self.voxels).square() * weight).sum() / weight.sum()

        return loss


def seconds(work: Callable[[], Tensor], device: str, bf16: bool) -> tuple[float, float]:
    """Forward and backward."""

    def now() -> float:
        if device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    start = now()
    with torch.autocast(device, torch.bfloat16, enabled=bf16):
        loss = work()
    middle = now()
    loss.backward()
    return middle - start, now() - middle


def total(features: Callable[[], list[Tensor]]) -> Callable[[], Tensor]:
    return lambda: torch.stack([x.float().square().mean() for x in features()]).sum()


def table(works: dict[str, Callable[[], Tensor]], rounds: int, device: str, bf16: bool) -> dict[str, dict[str, float]]:
    """Medians over rounds in which the variants take turns; one round more warms up."""
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in works}
    for _ in range(rounds + 1):
        for name, work in works.items():
            times[name].append(seconds(work, device, bf16))
    rows = {}
    for name, all_of in times.items():
        forward, backward = ([pair[i] for pair in all_of[1:]] for i in (0, 1))
        both = [f + b for f, b in all_of[1:]]
        rows[name] = {"forward": statistics.median(forward), "backward": statistics.median(backward),
                      "both": statistics.median(both), "least": min(both), "most": max(both)}  # fmt: skip
    return {k: {n: round(v, 4) for n, v in row.items()} for k, row in rows.items()}


def crossover(rounds: int, device: str, bf16: bool, flat: bool) -> list[dict[str, float]]:
    """One 3x3x3 convolution with 75% masked, 256 blocks in all, packed both ways and dense, by block size."""
    rows = []
    for size in (1, 2, 3, 4, 6, 8, 16):
        channels = min(512, 1024 // size)
        conv = DepthFreeConv3d(channels, channels, 3, padding=1).to(device)
        grid, block = ((1, 16, 16), (1, size, size)) if flat else ((4, 8, 8), (size,) * 3)
        if size == 16 and not flat:
            grid = (4, 4, 4)
        visible = ~block_mask(torch.arange(1), grid, 0.75).to(device)
        blocks = ActiveBlocks(visible)
        shape = [n * b for n, b in zip(grid, block, strict=True)]
        dense = torch.randn(1, channels, *shape, device=device).requires_grad_()
        packed = blocks.pack(dense.detach()).requires_grad_()

        def by(
            limit: float, packed: Tensor = packed, conv: DepthFreeConv3d = conv, blocks: ActiveBlocks = blocks
        ) -> Tensor:
            convolution.CROSSOVER = limit
            y = convolution.packed_conv(conv, packed, blocks)
            return (y * y.detach()).sum()

        def densely(dense: Tensor = dense, conv: nn.Conv3d = conv) -> Tensor:
            y = conv(dense)
            return (y * y.detach()).sum()

        # the limit holds in the backward pass too, so the two ways are timed one after the other
        row = {"block": size, "channels": channels}
        for name, work in (("matrix", partial(by, 1e9)), ("convolution", partial(by, 0.0)), ("dense", densely)):
            row[name] = table({name: work}, rounds, device, bf16)[name]["both"]
        rows.append(row)
        print(row, flush=True)
    return rows


def grown(args: argparse.Namespace) -> dict[str, float]:
    """Run one variant once in this fresh process; its memory in MiB."""
    torch.set_num_threads(args.threads)
    case = Case(args.backbone, args.kind, args.ratio, args.device)
    variant = args.memory.removeprefix("step:")
    work = case.step(variant) if args.memory.startswith("step:") else total(case.features(variant))
    if args.device == "cuda":
        before = torch.cuda.memory_allocated()
        seconds(work, args.device, args.bf16)
        return {"grown": (torch.cuda.max_memory_allocated() - before) / 2**20}
    small = nn.Conv3d(1, 1, 3)(torch.zeros(1, 1, 4, 4, 4))  # libraries are loaded before the reading
    small.sum().backward()
    before = resident("VmRSS")
    seconds(work, args.device, args.bf16)
    return {"grown": resident("VmHWM") - before, "peak": resident("VmHWM")}


def resident(what: str) -> float:
    """MiB that the process holds now (VmRSS) or held at its peak (VmHWM; ru_maxrss begins at the parent's size)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(what)) / 1024


def memory(args: argparse.Namespace, kind: str, ratio: float, variant: str) -> dict[str, float]:
    command = [sys.executable, __file__, "--memory", variant, "--kind", kind, "--ratio", str(ratio), "--backbone",
               args.backbone, "--device", args.device, "--threads", str(args.threads)]  # fmt: skip
    command += ["--bf16"] * args.bf16
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return {k: round(v, 1) for k, v in json.loads(output.splitlines()[-1]).items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--backbone", choices=BACKBONES, default="stunet")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--bf16", action="store_true")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--kinds", nargs="+", default=list(KINDS), choices=KINDS)
    parser.add_argument("--parts", nargs="+", default=["encoder", "step", "crossover"])
    parser.add_argument("--memory", help=argparse.SUPPRESS)
    parser.add_argument("--kind", help=argparse.SUPPRESS)
    parser.add_argument("--ratio", type=float, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.memory:
        print(json.dumps(grown(args)))
        return
    torch.set_num_threads(args.threads)
    result: dict[str, object] = {}
    for kind in args.kinds:
        for ratio in (0.75, 0.6):
            for part in ("encoder", "step"):
                if part not in args.parts:
                    continue
                case = Case(args.backbone, kind, ratio, args.device)
                if part == "encoder":
                    names = ["packed", "multiplied", "unmasked", "unmasked_last"]
                    works = {name: total(case.features(name)) for name in names}
                else:
                    works = {name: case.step(name) for name in ("packed", "multiplied")}
                rows = table(works, args.rounds, args.device, args.bf16)
                for name, row in rows.items():
                    row |= memory(args, kind, ratio, name if part == "encoder" else f"step:{name}")
                    row["times packed"] = round(row["both"] / rows["packed"]["both"], 2)
                result[f"{part} {kind} {ratio}"] = rows
                print(part, kind, ratio, json.dumps(rows, indent=1), flush=True)
    if "crossover" in args.parts:
        for kind in args.kinds:
            result[f"crossover {kind}"] = crossover(args.rounds, args.device, args.bf16, flat=kind == "2d")
    suffix = f"_{'_'.join(args.kinds)}" + "_bf16" * args.bf16 + f"_{args.device}" * (args.device != "cpu")
    record(f"block_sparse_{args.backbone}{suffix}", {"device": args.device, "threads": args.threads} | result)


if __name__ == "__main__":
    main()
