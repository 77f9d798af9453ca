"""A training step (forward and backward) of MAE on ViT-B: ours against timm's blocks with the masking written plainly.

command: python benchmarks/mae_step.py [--device auto|cpu|cuda] [--batch 16] [--out mae_step] [--quick]

2D: 224x224, patch 16, one channel, decoder 512 x 8, in fp32 and in bf16 autocast. The peer does what the MAE paper's
code does: all patches through the convolution, a gather of the visible ones, timm's blocks, mask tokens, timm's
blocks, the loss of the hidden patches. Both get the same weights and, once, the same masks: their losses must agree.
Then the two take turns in one process; medians of the rounds, and the median of the rounds' own ratios.

3D: our step at 96^3 with patches of 16^3 and of 8^3. Peak memory of every case from a process of its own: resident
set on a CPU (with torch itself: `before_mb`), allocated memory on a GPU. `of_matmul` is the share of what one large
matrix product reaches in the same type.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any, cast

import torch
from record import record
from timing import seconds
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from scanfoundry.backbones.layers.positions import sincos_positions
from scanfoundry.backbones.registry import build
from scanfoundry.backbones.torchvision_cpu import ensure_torchvision
from scanfoundry.backbones.vit import WIDTH_DEPTH_HEADS, ViTConfig
from scanfoundry.datasets.batch import Batch
from scanfoundry.pretrain.masking import block_mask
from scanfoundry.pretrain.objectives.mae import MAEConfig
from scanfoundry.pretrain.objectives.mae_tokens import TokenMAE

RATIO, PATCH, SIDE = 0.75, 16, 224
DECODER = (512, 8, 16)  # width, depth, heads
VOLUME, VOLUME_PATCHES = (96, 96, 96), {"3d 16^3": (16, 16, 16), "3d 8^3": (8, 8, 8)}
# ours in the peer's words
NAMES = {
    "encoder.patch_embed_2d.": "patch_embed.",
    "encoder.cls_token": "cls_token",
    "encoder.blocks.": "blocks.",
    "encoder.norm.": "norm.",
    "decoder.embed.": "decoder_embed.",
    "decoder.mask_token": "mask_token",
    "decoder.blocks.": "decoder_blocks.",
    "decoder.norm.": "decoder_norm.",
    "decoder.head_2d.": "decoder_pred.",
}


class PlainMAE(nn.Module):
    """MAE in a few lines over timm's blocks."""

    def __init__(self, size: str, side: int) -> None:
        super().__init__()
        ensure_torchvision()
        from timm.models.vision_transformer import Block

        width, depth, heads = WIDTH_DEPTH_HEADS[size]
        grid, dim = side // PATCH, DECODER[0]
        self.patch_embed = nn.Conv2d(1, width, PATCH, PATCH)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.blocks = nn.Sequential(*(Block(width, heads, qkv_bias=True) for _ in range(depth)))
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.decoder_embed = nn.Linear(width, dim)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.decoder_blocks = nn.Sequential(*(Block(dim, DECODER[2], qkv_bias=True) for _ in range(DECODER[1])))
        self.decoder_norm = nn.LayerNorm(dim, eps=1e-6)
        self.decoder_pred = nn.Linear(dim, PATCH * PATCH)
        for name, columns in (("positions", width), ("decoder_positions", dim)):
            self.register_buffer(name, sincos_positions((1, grid, grid), columns, True).float(), persistent=False)
        for module in self.modules():
            if isinstance(module, nn.LayerNorm):
                module.eps = 1e-6

    def forward(self, images: Tensor, noise: Tensor | None = None) -> Tensor:
        """The loss of images (B, 1, H, W); the patches of the lowest noise (B, L) stay visible."""
        b, _, height, width = images.shape
        x = self.patch_embed(images).flatten(2).transpose(1, 2) + self.positions
        count = x.shape[1]
        kept = count - round(count * RATIO)
        noise = torch.rand(b, count, device=x.device) if noise is None else noise
        shuffle = noise.argsort(dim=1)
        restore = shuffle.argsort(dim=1)
        x = x.gather(1, shuffle[:, :kept, None].expand(-1, -1, x.shape[2]))
        x = self.norm(self.blocks(torch.cat((self.cls_token.expand(b, -1, -1), x), dim=1)))
        x = self.decoder_embed(x)
        y = torch.cat((x[:, 1:], self.mask_token.expand(b, count - kept, -1).to(x.dtype)), dim=1)
        y = y.gather(1, restore[:, :, None].expand(-1, -1, y.shape[2])) + self.decoder_positions
        y = self.decoder_norm(self.decoder_blocks(torch.cat((x[:, :1], y), dim=1)))
        predicted = self.decoder_pred(y[:, 1:])
        patches = images.view(b, height // PATCH, PATCH, width // PATCH, PATCH).transpose(2, 3).reshape(b, count, -1)
        mean, variance = patches.mean(dim=-1, keepdim=True), patches.var(dim=-1, keepdim=True)
        error = (predicted.float() - (patches - mean) / (variance + 1e-6).sqrt()).square().mean(dim=-1)
        hidden = (restore >= kept).float()
        return (error * hidden).sum() / hidden.sum()

    def take(self, ours: TokenMAE) -> None:
        """Our weights under the names here."""
        state = {}
        for key, value in ours.state_dict().items():
            for start, name in NAMES.items():
                if key.startswith(start):
                    state[name + key.removeprefix(start)] = value
        self.load_state_dict(state)


def objective(size: str, patch_3d: tuple[int, int, int], device: str) -> TokenMAE:
    """Our MAE with the paper's decoder."""
    torch.manual_seed(0)
    width, depth, heads = DECODER
    config = MAEConfig(mask_ratio=RATIO, decoder_dim=width, decoder_depth=depth, decoder_heads=heads)
    objective = config.build(build(ViTConfig(size=size, patch_3d=patch_3d)))
    return cast(TokenMAE, objective.to(device).train())


def scans(count: int, shape: tuple[int, int, int], device: str) -> Batch:
    """A batch of noise, as the loader would hand it out."""
    voxels = torch.randn(count, 1, *shape, generator=torch.Generator().manual_seed(0))
    names = [str(number) for number in range(count)]
    return Batch(voxels, torch.ones_like(voxels, dtype=torch.bool), torch.arange(count), names, names, names, 0).to(
        device
    )


def agree(ours: TokenMAE, plain: PlainMAE, batch: Batch) -> None:
    """Both losses with our masks and the same weights, to float32's rounding."""
    plain.take(ours)
    with torch.no_grad():
        mask = block_mask(batch.seeds.cpu(), ours.grid(batch.voxels.shape[2:]), RATIO).flatten(1)  # type: ignore[arg-type]
        one, other = ours(batch)[0], plain(batch.voxels[:, :, 0], mask.float().to(batch.voxels.device))
    torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def step(model: nn.Module, loss: Callable[[], Tensor], bf16: bool, device: str) -> Callable[[], None]:
    """Forward and backward."""

    def run() -> None:
        model.zero_grad(set_to_none=True)
        with torch.autocast(device, torch.bfloat16, enabled=bf16):
            value = loss()
        value.backward()

    return run


def matmul_flops(bf16: bool, device: str, quick: bool) -> float:
    """Operations per second of one large square matrix product."""
    n = 8192 if device == "cuda" else (512 if quick else 2048)
    a = torch.randn(n, n, device=device, dtype=torch.bfloat16 if bf16 else torch.float32)
    a @ a
    return 2 * n**3 / median(seconds(lambda: a @ a, device) for _ in range(7))


def counted(call: Callable[[], object]) -> int:
    """Floating-point operations of the matrix products and convolutions of one call."""
    with FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops()


def compare(size: str, side: int, count: int, rounds: int, bf16: bool, device: str, quick: bool) -> dict[str, Any]:
    """Our 2D step and the plain one, taking turns."""
    ours, plain = objective(size, (8, 8, 8), device), PlainMAE(size, side).to(device).train()
    batch = scans(count, (1, side, side), device)
    agree(ours, plain, batch)
    steps = {
        "scanfoundry_ms": step(ours, lambda: ours(batch)[0], bf16, device),
        "plain_ms": step(plain, lambda: plain(batch.voxels[:, :, 0]), bf16, device),
    }
    flops = counted(steps["scanfoundry_ms"])
    for call in steps.values():
        call()
    times: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(rounds):
        for name in list(steps)[:: 1 if turn % 2 else -1]:
            times[name].append(1000 * seconds(steps[name], device))
    ratios = [b / a for a, b in zip(*times.values(), strict=True)]
    row: dict[str, Any] = {name: round(median(values), 2) for name, values in times.items()}
    row |= {
        "faster": round(median(ratios), 3),
        "faster_min": round(min(ratios), 3),
        "faster_max": round(max(ratios), 3),
    }
    reached = flops / (1e-3 * row["scanfoundry_ms"])
    row["of_matmul"] = round(reached / matmul_flops(bf16, device, quick), 3)
    row["scans_per_s"] = round(count / (1e-3 * row["scanfoundry_ms"]), 2)
    return row


def alone(given: argparse.Namespace, case: str, bf16: bool) -> dict[str, Any]:
    """One case in this process: median time and peak memory."""
    size, side, device = given.size, given.side, given.device
    flat = case.startswith("2d")
    shape = (1, side, side) if flat else given.volume
    batch = scans(given.batch if flat else given.batch_3d, shape, device)
    model = PlainMAE(size, side).to(device).train() if case == "2d plain" else None
    ours = None if model else objective(size, VOLUME_PATCHES.get(case, (8, 8, 8)), device)
    call = (
        step(ours, lambda: ours(batch)[0], bf16, device)
        if ours
        else step(model, lambda: model(batch.voxels[:, :, 0]), bf16, device)
    )
    before = peak_mb(device)
    times = [1000 * seconds(call, device) for _ in range(given.rounds + 1)][1:]
    return {"ms": round(median(times), 2), "batch": len(batch), "peak_mb": peak_mb(device), "before_mb": before}


def peak_mb(device: str) -> int:
    """The most memory this process has had so far."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated() // 2**20
    # not ru_maxrss: Linux starts a child's at the size of its parent
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) // 1024


def child(case: str, precision: str) -> dict[str, Any]:
    """`alone` in a fresh process."""
    command = [sys.executable, *sys.argv, "--case", case, "--precision", precision]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return json.loads(output.splitlines()[-1])


def options() -> argparse.Namespace:
    """The command line, with --device resolved and --quick's small sizes."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--batch-3d", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--compare-only", action="store_true", help="the two 2D steps side by side, and nothing else")
    parser.add_argument("--quick", action="store_true", help="ViT-Ti at 64^2 and 32^3: only to see that it runs")
    parser.add_argument("--out", help="name of the JSON in benchmarks/results; without it nothing is written")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    parser.add_argument("--precision", default="fp32", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.device == "auto":
        given.device = "cuda" if torch.cuda.is_available() else "cpu"
    given.size, given.side, given.volume = ("Ti", 64, (32, 32, 32)) if given.quick else ("B", SIDE, VOLUME)
    return given


def main() -> None:
    """Measure, print tables, and with --out write JSON."""
    given = options()
    if given.case:
        print(json.dumps(alone(given, given.case, given.precision == "bf16")))
        return
    name = torch.cuda.get_device_name() if given.device == "cuda" else "cpu"
    result: dict[str, Any] = {"device": name, "threads": torch.get_num_threads(), "batch": given.batch}
    print(f"ViT-{given.size} on {name}, {torch.get_num_threads()} threads")
    for precision in ("fp32", "bf16"):
        arguments = (given.size, given.side, given.batch, given.rounds, precision == "bf16", given.device, given.quick)
        result[f"2d {precision}"] = row = compare(*arguments)
        print(f"2d {precision}: " + ", ".join(f"{key} {value}" for key, value in row.items()), flush=True)
        for case in () if given.compare_only else ("2d scanfoundry", "2d plain", *VOLUME_PATCHES):
            result[f"{case} {precision}, alone"] = row = child(case, precision)
            print(
                f"{case} {precision}, alone: " + ", ".join(f"{key} {value}" for key, value in row.items()), flush=True
            )
    if given.out:
        record(given.out, result)


if __name__ == "__main__":
    main()
