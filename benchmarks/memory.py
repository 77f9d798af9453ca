"""Memory per rank of real engine steps at every ZeRO stage, against what `scanfoundry launch --dry-run` estimates.

command: python benchmarks/memory.py [--device cpu|cuda] [--nets stunet_l stunet_h vit_l] [--worlds 1 2]
                                     [--stages 0 1 2 3] [--recompute off on] [--bucket 50000000] [--limit-gb 10]
                                     [--edge 64] [--out memory] [--quick]

Each case runs in processes of its own: two steps, the second one measured. On a GPU by torch's allocator. On a CPU the
profiler counts every buffer of a lone process; of two processes the system's count is taken (resident memory beyond
what a warmed-up process has), since gloo's threads let tensors go unseen. `--bucket` sets DeepSpeed's reduce bucket in
numbers on both sides (0: its default, 5e8, of which a CPU's untouched part is not resident). A case whose estimate for
all ranks together is above `--limit-gb` is not run, and the table says so.
"""

import argparse
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import torch
from record import record

import scanfoundry.pretrain.engine.engine as engine_module
from scanfoundry.backbones.registry import build
from scanfoundry.datasets.batch import Batch
from scanfoundry.pretrain.config.run import PretrainConfig
from scanfoundry.pretrain.distributed.world import join, leave
from scanfoundry.pretrain.engine.engine import Engine
from scanfoundry.pretrain.memory import estimate
from scanfoundry.pretrain.memory.measured import Allocated, Resident

STUNET_CROP, VIT_CROP = [64, 64, 64], [64, 64, 64]
SPARK = {"name": "spark"}
NETS = {
    "stunet_s": ({"name": "stunet", "size": "S"}, SPARK, STUNET_CROP),
    "stunet_l": ({"name": "stunet", "size": "L"}, SPARK, STUNET_CROP),
    "stunet_h": ({"name": "stunet", "size": "H"}, SPARK, STUNET_CROP),
    "vit_ti": ({"name": "vit", "size": "Ti"}, {"name": "mae"}, VIT_CROP),
    "vit_l": ({"name": "vit", "size": "L"}, {"name": "mae"}, VIT_CROP),
}


def configured(
    net: str, world: int, stage: int, checkpointing: bool, precision: str, edge: int | None = None
) -> PretrainConfig:
    backbone, objective, crop = NETS[net]
    crop = crop if edge is None else [edge] * 3
    return PretrainConfig.model_validate({
        "run_dir": "run", "steps": 100, "backbone": backbone, "objective": objective,
        "data": {"sources": [{"name": "a", "path": "a"}], "crop_3d": crop, "batch_3d": world},
        "engine": {"zero_stage": stage, "activation_checkpointing": checkpointing, "precision": precision},
    })  # fmt: skip


def set_bucket(numbers: int) -> None:
    """The same reduce bucket for the engine and for the estimate."""
    plain = engine_module.deepspeed_config

    def with_bucket(*given):
        config = plain(*given)
        if numbers:
            config["zero_optimization"]["reduce_bucket_size"] = numbers
        return config

    engine_module.deepspeed_config = estimate.deepspeed_config = with_bucket


def estimated(config: PretrainConfig, world: int, device: str) -> int:
    """Bytes on a rank, without the crops that a loader would hold beside the views."""
    d, h, w = config.data.crop_3d
    return estimate.Calculator(config, world, device).usage().peak - d * h * w * 5


def steps(config: PretrainConfig, world, meter) -> None:
    """Two steps of a fresh engine; the meter counts the second one."""
    torch.manual_seed(0)
    with meter:
        objective = config.objective.build(build(config.backbone))
        engine = Engine(objective, config.optimiser, config.engine, world)
        shape, names = (1, 1, *config.data.crop_3d), [str(world.rank)]
        valid = torch.ones(shape, dtype=torch.bool)
        view = Batch(torch.randn(shape), valid, torch.tensor([world.rank]), names, names, names, 0)
        engine.step([(view,)], 1e-4)
        meter.begin()
        engine.step([(view,)], 1e-4)


def rank(options: argparse.Namespace) -> None:
    """One process of a case: prints the peak in bytes."""
    world = join(options.device, 1)
    config = configured(options.nets[0], world.size, options.stages[0], options.checkpointing, options.precision,
                        options.edge)  # fmt: skip
    resident = options.device == "cpu" and world.size > 1
    if resident:  # libraries are loaded before the reading
        small = "vit_ti" if config.backbone.name == "vit" else "stunet_s"
        steps(configured(small, world.size, options.stages[0], True, options.precision), world, Resident())
    meter = Resident() if resident else Allocated(world.device)
    steps(config, world, meter)
    if world.is_main:
        print(json.dumps({"peak": meter.peak}), flush=True)
    leave(world)
    sys.stdout.flush()
    os._exit(0)


def measured(options: argparse.Namespace, net: str, world: int, stage: int, checkpointing: bool) -> int | None:
    """The case in its own processes; bytes of rank 0, None where it failed."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    command = [
        sys.executable, __file__, "--rank", "--nets", net, "--stages", str(stage), "--device", options.device,
        "--bucket", str(options.bucket), "--precision", options.precision,
        *(["--checkpointing"] if checkpointing else []), *(["--edge", str(options.edge)] if options.edge else []),
    ]  # fmt: skip
    env = os.environ | {"WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port,
                        "MALLOC_MMAP_THRESHOLD_": "65536", "PYTHONSAFEPATH": "1", "OMP_NUM_THREADS": "1"}  # fmt: skip
    env["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parent), env.get("PYTHONPATH", "")])
    running = [
        subprocess.Popen(command, env=env | {"RANK": str(r), "LOCAL_RANK": str(r)}, stdout=subprocess.PIPE,
                         stderr=subprocess.PIPE, text=True)
        for r in range(world)
    ]  # fmt: skip
    outputs = [process.communicate() for process in running]
    lines = [line for line in outputs[0][0].splitlines() if line.startswith('{"peak"')]
    if any(process.returncode for process in running) or not lines:
        print(outputs[0][1][-1500:], file=sys.stderr)
        return None
    return int(json.loads(lines[0])["peak"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--nets", nargs="+", choices=NETS, default=["stunet_l", "stunet_h", "vit_l"])
    parser.add_argument("--worlds", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--stages", nargs="+", type=int, default=[0, 1, 2, 3])
    parser.add_argument("--recompute", nargs="+", choices=("off", "on"), default=["off", "on"])
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--bucket", type=int, default=50_000_000)
    parser.add_argument("--limit-gb", type=float, default=10.0)
    parser.add_argument("--edge", type=int, help="voxels along each axis of a crop; where activations count")
    parser.add_argument("--out", default="memory")
    parser.add_argument("--quick", action="store_true", help="the two smallest networks")
    parser.add_argument("--rank", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--checkpointing", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    set_bucket(options.bucket)
    if options.rank:
        rank(options)
    rows = []
    print(f"{'net':>10} {'world':>5} {'stage':>5} {'ckpt':>5} {'measured GB':>11} {'estimate GB':>11} {'ratio':>6}")
    for net in ["stunet_s", "vit_ti"] if options.quick else options.nets:
        recompute = [word == "on" for word in options.recompute]
        for world, stage, on in ((w, s, c) for w in options.worlds for s in options.stages for c in recompute):
            guess = estimated(configured(net, world, stage, on, options.precision, options.edge), world, options.device)
            fits = guess * world <= options.limit_gb * 1e9
            peak = measured(options, net, world, stage, on) if fits else None
            row = {"net": net, "world": world, "stage": stage, "checkpointing": on, "estimate_gb": guess / 1e9}
            row |= {"measured_gb": peak / 1e9, "ratio": guess / peak} if peak else {"not_measured": not fits}
            rows.append(row)
            shown = f"{peak / 1e9:>11.2f} {guess / 1e9:>11.2f} {guess / peak:>6.2f}" if peak else (
                f"{'not run' if not fits else 'failed':>11} {guess / 1e9:>11.2f} {'':>6}")  # fmt: skip
            print(f"{net:>10} {world:>5} {stage:>5} {'on' if on else 'off':>5} {shown}", flush=True)
    settings = {"device": options.device, "bucket": options.bucket, "precision": options.precision}
    settings["edge"] = options.edge or STUNET_CROP[0]
    record(options.out, {"settings": settings, "rows": rows})


if __name__ == "__main__":
    main()
