"""What the recipes for clusters need of a GPU, and how fast they may be: estimates, nothing is computed.

command: python benchmarks/recipes.py [--recipes cluster_spark_volumes ...] [--out recipes]

Memory is that of `scanfoundry launch --dry-run`: the objective on tensors without numbers, and what DeepSpeed holds
beside it. A rate is peak / operations of a crop * `ASSUMED`, the share of the peak that we take such a run to reach: no
measurement. A time is all steps at that rate; waiting for data, checkpoints and the network between nodes are left out.
"""

import argparse
import time

from record import record

from scanfoundry.configs.loading import load
from scanfoundry.pretrain.config.run import PretrainConfig
from scanfoundry.pretrain.logging.device_peaks import peak_tflops
from scanfoundry.pretrain.memory.estimate import Calculator
from scanfoundry.pretrain.memory.flops import flops

PEAK = peak_tflops("A100", "bf16", False)  # of a GPU of 80 GB
ASSUMED = {"convolutional": 0.25, "transformer": 0.35}
PAIR = 2  # crops that operations are counted on: of one there would be no batch statistics
SIZES = {"gpu_1": 1, "gpu_8": 8, "gpu_16_nodes": 128}
# What is typed beside the recipe at each size; nothing for the size that the recipe is written for.
TYPED = {
    "cluster_spark_volumes": {"gpu_1": "engine.accumulation=32", "gpu_16_nodes": "engine.accumulation=1"},
    "cluster_mae_volumes": {"gpu_1": "engine.accumulation=64", "gpu_16_nodes": "engine.accumulation=1"},
    "cluster_mae_images": {"gpu_1": "engine.accumulation=16", "gpu_16_nodes": "engine.accumulation=1"},
    "cluster_contrast_images": {
        "gpu_1": "data.batch_2d=256 optimiser.lr=1.5e-4",
        "gpu_16_nodes": "data.batch_2d=4096 optimiser.lr=2.4e-3 steps=25000 optimiser.warmup_steps=1000",
    },
    "cluster_mixed": {
        "gpu_1": "data.batch_2d=128 data.batch_3d=32 optimiser.lr=1.0e-4",
        "gpu_16_nodes": "data.batch_2d=4096 data.batch_3d=1024 optimiser.lr=1.2e-3 steps=25000 "
        "optimiser.warmup_steps=1000",
    },
}


class Remembering(Calculator):
    """Several sizes of one recipe have the same batch on a GPU, whose pass is traced once."""

    def __init__(self, config: PretrainConfig, world: int, traces: dict) -> None:
        super().__init__(config, world, "cuda")
        self._known = traces

    def _trace_once(self, crop, samples, checkpointing):
        key = crop, samples, checkpointing
        if key not in self._known:
            self._known[key] = super()._trace_once(crop, samples, checkpointing)
        return self._known[key]


def row(name: str, size: str, traces: dict, operations: dict) -> dict:
    """Memory, rate and time of one recipe on so many GPUs."""
    words = TYPED[name].get(size, "").split()
    config, world = load(PretrainConfig, name, "pretrain", words), SIZES[size]
    calculator = Remembering(config, world, traces)
    rate, kinds, seconds = {}, calculator.crops(), 0.0
    for crop, _ in kinds:
        if crop not in operations:
            operations[crop] = flops(config, crop, PAIR) / PAIR
        kind, batch = ("2d", config.data.batch_2d) if crop[0] == 1 else ("3d", config.data.batch_3d)
        rate[kind] = PEAK * 1e12 * ASSUMED[config.backbone.family] / operations[crop]
        seconds += config.steps / len(kinds) * batch / world / rate[kind]  # kinds take turns
    return {
        "recipe": name, "gpus": world, "typed": " ".join(words), "parameters": calculator.model.trainable,
        "crops_on_a_gpu": {str(crop): samples for crop, samples in kinds},
        "memory_gb": round(calculator.usage().peak / 1e9, 1),
        "gflop_of_a_crop": {str(crop): round(operations[crop] / 1e9) for crop, _ in kinds},
        "crops_per_second_of_a_gpu": {kind: round(value, 2) for kind, value in rate.items()},
        "days": round(seconds / 86400, 2),
    }  # fmt: skip


def main() -> None:
    """Print a line for each recipe and size, and record all."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--recipes", nargs="*", default=list(TYPED))
    parser.add_argument("--out")
    options = parser.parse_args()
    rows, began = [], time.process_time()
    for name in options.recipes:
        traces, operations = {}, {}
        for size in SIZES:
            rows.append(row(name, size, traces, operations))
            print(rows[-1], flush=True)
    if options.out:
        assumed = {"peak_tflops": PEAK, "share_of_peak_assumed": ASSUMED}
        record(options.out, {"rows": rows, **assumed, "cpu_seconds": round(time.process_time() - began)})


if __name__ == "__main__":
    main()
