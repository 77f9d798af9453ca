"""A model of a run on many nodes, fed with what was measured on one: data wait, start and resume, checkpoint stall.

command: python benchmarks/cluster_model.py [--nodes 64] [--gpus 8] [--crop-cpu-ms 12 49]

It simulates the steps of all ranks: workers make crops in drawn times, a rank's batch is ready when its workers have
made it and there is room in the buffers, and a step begins when the slowest rank has its batch. Start, resume and
checkpoints are sums of costs. `MEASURED` is read from `results/`; `ASSUMED` is what nobody could measure here, each
with its reason, and stands in the result. The figures are estimates, and no more than that.
"""

import argparse
import json
from statistics import median
from typing import Any

import numpy as np
from record import RESULTS, record

from scanfoundry.pretrain.training.steps import LOOK_EVERY

PARAMETERS = {"S": 14.6e6, "B": 58.3e6, "L": 440.3e6, "H": 1457e6}  # STU-Net (Huang et al. 2023, table 1)
TFLOP_128 = {"S": 0.13, "B": 0.51, "L": 3.81, "H": 12.60}  # a forward pass of 128^3, from the same table
CASES = {"L": 4, "B": 16}  # crops on a GPU
ASSUMED = {
    "workers": 14,  # processes beside each GPU: 128 cores for 8 GPUs, less one for the rank and one for its threads
    "tflops": 300.0,  # 30% of the bf16 peak of an H100, a fast step: slower ones wait less for data
    "spread": 0.5,  # of the logarithm of a crop's time; scans differ in size
    "slow_reads": 0.002,  # share of crops that wait for the file system
    "slow_read_s": 0.5,
    "batches_ahead": 8,  # `data.ring` begins at 4 and grows to 16
    "file_system_gb_s": 50.0,  # of all nodes together
    "one_client_gb_s": 1.0,  # of one process
    "to_host_gb_s": 10.0,  # GPU to host memory, a fifth of PCIe 5
    "exchange_gb_s": 20.0,  # of an all-reduce across nodes
    "collective_s": 0.002,  # a small one over 512 ranks
    "gather_s": 0.02,  # of what each has written
    "file_system_call_s": 0.02,  # mkdir, fsync, rename
    "imports_s": 30.0,  # of 512 processes from one file system; 3 s from a local disk
    "rendezvous_s": 15.0,
    "first_step_s": 20.0,  # kernels are chosen and compiled
    "scans": 1e6,
}


def measured() -> dict[str, float]:
    """Costs of one machine, from `results/`; CPU seconds where the JSON has them."""
    read = {name: json.loads((RESULTS / f"{name}.json").read_text())["result"] for name in
            ("loader", "engine_overhead", "checkpoint_stall")}  # fmt: skip
    rate = median(read["loader"]["ct 128^3, 1 crops per visit"]["per_second"]["scanforge zstd"])
    now, before = read["checkpoint_stall"]["now"], read["checkpoint_stall"]["before"]
    held = 12 * PARAMETERS["B"] / 2 / 1e9  # GB that one of two ranks wrote
    released = 4 * PARAMETERS["B"] / 1e9
    return {
        "crop_revisited_cpu_s": 2 / rate,  # two workers
        "start_s": max(read["engine_overhead"]["seconds_to_first_step"]),
        "copy_s_per_gb": now["median_stalls"] / held,  # on a machine that was busy
        "write_s_per_gb": before["median_stalls"] / (held + 3 * released),  # a release is read, written and summed
    }


def data_wait(rows: int, crops: int, step_s: float, crop_s: float, steps: int) -> float:
    """Share of the time that the steps wait for data, of so many ranks with so many crops each."""
    rng, ahead, sigma = np.random.default_rng(0), int(ASSUMED["batches_ahead"]), ASSUMED["spread"]
    workers = np.zeros((rows, int(ASSUMED["workers"])))  # when each is free
    begins = np.zeros(steps)
    end, waited = 0.0, 0.0
    for step in range(steps):
        room = begins[step - ahead] if step >= ahead else 0.0
        ready = np.zeros(rows)
        for _ in range(crops):
            seconds = crop_s * rng.lognormal(-sigma * sigma / 2, sigma, rows)
            seconds += (rng.random(rows) < ASSUMED["slow_reads"]) * ASSUMED["slow_read_s"]
            first = workers.argmin(axis=1)
            done = np.maximum(workers[np.arange(rows), first], room) + seconds
            workers[np.arange(rows), first] = done
            ready = np.maximum(ready, done)
        begins[step] = max(end, ready.max())
        if step >= steps // 10:  # the first ones fill the buffers
            waited += begins[step] - end
        end = begins[step] + step_s
    return waited / (end - begins[steps // 10])


def starts(ranks: int, state_gb: float, costs: dict[str, float]) -> dict[str, float]:
    """Seconds from the job's begin to its first step: a new run, and one that continues."""
    plan = 3 * 2.5 * ASSUMED["scans"] / 1e6  # CPU s of a plan of a million scans (shared by none), built three times
    share = state_gb / ranks
    begin = ASSUMED["imports_s"] + ASSUMED["rendezvous_s"] + costs["start_s"] + plan + ASSUMED["first_step_s"]
    rate = min(ASSUMED["one_client_gb_s"], ASSUMED["file_system_gb_s"] / ranks)
    # every file is verified and read once, by one rank; all ranks hear of it
    resume = 2 * share / rate + 2 * state_gb / ASSUMED["exchange_gb_s"]
    everywhere = state_gb / ranks / rate + state_gb / (ASSUMED["file_system_gb_s"] / ranks)
    return {"start_s": begin, "resume_s": begin + resume, "resume_if_every_rank_read_all_s": begin + everywhere}


def checkpoints(ranks: int, parameters: float, step_s: float, every: int, costs: dict[str, float]) -> dict[str, float]:
    """What a checkpoint holds up, and how long it is in flight, in seconds."""
    held, released = 12 * parameters / ranks / 1e9, 4 * parameters / 1e9
    rate = min(ASSUMED["one_client_gb_s"], ASSUMED["file_system_gb_s"] / ranks)
    copy = held / ASSUMED["to_host_gb_s"] + held * costs["copy_s_per_gb"]
    write = held / rate + held * costs["write_s_per_gb"] + 3 * ASSUMED["file_system_call_s"]
    release = 3 * released * max(costs["write_s_per_gb"], 1 / ASSUMED["one_client_gb_s"])
    looks = 1 + min(every, int((write + release) / step_s) + 2) // LOOK_EVERY  # small collectives while it is in flight
    stall = copy + ASSUMED["file_system_call_s"] + looks * ASSUMED["collective_s"] + ASSUMED["gather_s"]
    stall += max(0.0, write + release - every * step_s)  # the next one waits
    return {
        "stall_s": stall, "in_flight_s": write + release, "share": stall / (every * step_s),
        "share_if_steps_waited": (write + release) / (every * step_s + write + release),
    }  # fmt: skip


def main() -> None:
    """Simulate, print, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--nodes", type=int, default=64)
    parser.add_argument("--gpus", type=int, default=8, help="Of a node.")
    parser.add_argument("--every", type=int, default=500, help="Steps between checkpoints.")
    parser.add_argument("--steps", type=int, default=1000, help="That are simulated.")
    parser.add_argument("--crop-cpu-ms", type=float, nargs="*", default=[12, 49], help="Of scans seen once.")
    parser.add_argument("--out", default="cluster_model")
    given = parser.parse_args()
    ranks, costs = given.nodes * given.gpus, measured()
    crop_s = {"revisited": costs["crop_revisited_cpu_s"]} | {f"{ms:g} ms": ms / 1e3 for ms in given.crop_cpu_ms}
    result: dict[str, Any] = {"measured": costs, "assumed": ASSUMED, "ranks": ranks}
    for size, crops in CASES.items():
        # three times the forward pass: SparK's light decoder costs less than the U-Net's that the table has
        step_s = 3 * TFLOP_128[size] * crops / ASSUMED["tflops"]
        result[f"STU-Net-{size}, {crops} crops of 128^3 on a GPU"] = {
            "step_s": step_s,
            "data_wait": {name: data_wait(ranks, crops, step_s, cost, given.steps) for name, cost in crop_s.items()},
            **starts(ranks, 12 * PARAMETERS[size] / 1e9, costs),
            "checkpoint": checkpoints(ranks, PARAMETERS[size], step_s, given.every, costs),
        }
    print(json.dumps(result, indent=1))
    if given.out:
        record(given.out, result)


if __name__ == "__main__":
    main()
