"""Memory and time of sliding windows over scans of growing length: streamed, and of the whole volume by MONAI.

command: python benchmarks/window_memory.py [--lengths 128 256 512] [--classes 15] [--out window_memory]

Each case runs in a process of its own; counted is resident memory at most, with the scan and the label map, beyond
that of the warmed-up process. The network is a single convolution, so that what is measured is the windows, not the
network; the scan is 96 voxels wide and high, the file's grid 1.25 times finer along each axis. Linux alone.
"""

import argparse
import json
import os
import subprocess
import sys
import time

from record import record

WIDTH, PATCH, FINER = 96, (64, 96, 96), 1.25


def measure(way: str, length: int, classes: int) -> dict[str, float]:
    """Peak in MB and seconds of one core; run in a fresh process."""
    import torch

    import scanfoundry.finetune.monai_parts  # noqa: F401  # imports MONAI in the right order
    from scanfoundry.finetune.cases.volumes import resize
    from scanfoundry.finetune.inference.segmented import segment_volume
    from scanfoundry.finetune.inference.windows import Tiling
    from scanfoundry.pretrain.memory.measured import Resident

    torch.set_num_threads(1)
    network, cpu = torch.nn.Conv3d(1, classes, 1), torch.device("cpu")

    def run(size: int) -> None:
        image = torch.randn(1, size, WIDTH, WIDTH)
        shape = (int(size * FINER), int(WIDTH * FINER), int(WIDTH * FINER))
        if way == "streamed":
            segment_volume([network], image, 0.0, shape, Tiling(PATCH, 0.5), cpu)
            return
        from monai.inferers import sliding_window_inference

        with torch.inference_mode():
            logits = sliding_window_inference(image[None], PATCH, 1, network, 0.5, mode="gaussian")
        resize(logits[0].numpy(), shape).argmax(0).astype("uint8")

    run(PATCH[0])  # libraries are loaded
    with Resident() as memory:
        memory.begin()
        begin = time.process_time()
        run(length)
    return {"peak_mb": round(memory.peak / 2**20, 1), "cpu_seconds": round(time.process_time() - begin, 2)}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--lengths", type=int, nargs="+", default=[128, 256, 512])
    parser.add_argument("--classes", type=int, default=15)
    parser.add_argument("--out", default="window_memory")
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        print(json.dumps(measure(given.one[0], int(given.one[1]), given.classes)))
        return
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536", "OMP_NUM_THREADS": "1"}
    rows = []
    for length in given.lengths:
        for way in ("streamed", "whole"):
            command = [sys.executable, __file__, "--one", way, str(length), "--classes", str(given.classes)]
            made = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
            rows.append({"way": way, "length": length} | json.loads(made.stdout))
            print(rows[-1], flush=True)
    record(given.out, {"classes": given.classes, "rows": rows})


if __name__ == "__main__":
    main()
