"""One recipe run twice: straight, and killed with SIGKILL at random steps and started again; the weights must agree.

command: python benchmarks/kill_resume.py spark_stunet_volumes --kills 2 run_dir=runs/spark data.sources.0.path=...
The straight run keeps `run_dir`; the killed one goes beside it as `<run_dir>-killed`.
"""

import argparse
import hashlib
import json
import random
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path

from product import SCANFOUNDRY
from record import record


def steps_done(run_dir: Path) -> int:
    """Lines of metrics.jsonl so far."""
    path = run_dir / "metrics.jsonl"
    return path.read_text().count("\n") if path.exists() else 0


def run(command: list[str]) -> float:
    """Run to the end; seconds."""
    started = time.perf_counter()
    subprocess.run(command, check=True)
    return time.perf_counter() - started


def main() -> None:
    """Run straight, run with kills, compare bytes and losses, write JSON."""
    parser = argparse.ArgumentParser()
    parser.add_argument("recipe")
    parser.add_argument("--kills", type=int, default=2)
    parser.add_argument("--name", required=True)
    arguments, words = parser.parse_known_args()
    run_dir = Path(next(word for word in words if word.startswith("run_dir=")).partition("=")[2])
    killed_dir = run_dir.with_name(run_dir.name + "-killed")
    base = [SCANFOUNDRY, "pretrain", arguments.recipe, *words]
    seconds = run(base)
    total = steps_done(run_dir)
    points = sorted(random.sample(range(2, total - 1), arguments.kills))
    again = [*base, f"run_dir={killed_dir}"]
    for point in points:
        process = subprocess.Popen(again)
        while steps_done(killed_dir) < point and process.poll() is None:
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
        process.wait()
    run(again)
    lines = [[json.loads(x) for x in (d / "metrics.jsonl").read_text().splitlines()] for d in (run_dir, killed_dir)]
    sums = [hashlib.sha256((d / "model.safetensors").read_bytes()).hexdigest() for d in (run_dir, killed_dir)]
    losses = [line["loss"] for line in lines[0]]
    edge = max(1, len(losses) // 10)
    result = {
        "recipe": arguments.recipe, "steps": total, "seconds": round(seconds, 1), "killed_after_steps": points,
        "loss_first_tenth": round(statistics.mean(losses[:edge]), 4),
        "loss_last_tenth": round(statistics.mean(losses[-edge:]), 4),
        "losses_equal": losses == [line["loss"] for line in lines[1]],
        "weights_sha256": sums[0], "weights_equal": sums[0] == sums[1],
        "samples_per_second_median": round(statistics.median(line["samples_per_second"] for line in lines[0]), 2),
        "data_wait_median": round(statistics.median(line["data_wait"] for line in lines[0]), 4),
    }  # fmt: skip
    print(json.dumps(result, indent=1))
    record(arguments.name, result)
    sys.exit(0 if result["weights_equal"] and result["losses_equal"] else 1)


if __name__ == "__main__":
    main()
