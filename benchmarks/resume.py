"""Fifty SIGKILLs over a stream whose worker count changes: the global sequence of crops, by hash, stays the same.

command: python benchmarks/resume.py --data DATA --work runs/resume
Streams volumes and images together, from three data sets. Then the same stream at world size 1, 2 and 4.
"""

import argparse
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

from record import record

from scanfoundry.datasets.loader import CropLoader
from scanfoundry.datasets.plan import DataConfig, Position, SamplingPlan, SourceConfig
from scanfoundry.datasets.shards.build import BuildOptions, build

FOLDERS = {"mr": "msd_task04_hippocampus/imagesTr", "us": "busi_breast_ultrasound/images",
           "xr": "nih_chestxray8_2class/images"}  # fmt: skip
SEED = 11


def config_of(data: Path, work: Path, workers: int) -> DataConfig:
    """Volumes and images in one stream; flips, padding and foreground as in a real run."""
    sources = []
    for name, folder in FOLDERS.items():
        build([data / folder], work / name, BuildOptions(modality=name, shard_mb=2))
        sources.append(SourceConfig(name=name, path=work / name, flip_axes=[2]))
    return DataConfig(
        sources=sources, temperature=0.5, crop_2d=(128, 128), crop_3d=(32, 48, 32), batch_2d=16, batch_3d=8,
        crops_per_visit=2, workers=workers, window=4,
    )  # fmt: skip


def stream(config: DataConfig, log: Path, steps: int, rank: int, world: int) -> None:
    """Appends one line per step to `log`, from where it ends: the step's number and each crop's hash."""
    with open(log, "ab", buffering=0) as lines:
        whole = [line for line in log.read_bytes().splitlines(keepends=True) if line.endswith(b"\n")]
        lines.truncate(sum(map(len, whole)))
        done = len(whole)
        position = Position(*divmod(done, SamplingPlan(config, SEED).steps_per_epoch))
        with CropLoader(config, SEED, rank, world, position=position) as loader:
            for step in range(done, steps):
                batch = next(loader)
                hashes = []
                for number, key in enumerate(batch.keys):
                    digest = hashlib.sha256(batch.voxels[number].numpy().tobytes())
                    digest.update(batch.valid[number].numpy().tobytes())
                    digest.update(f"{key} {int(batch.seeds[number])}".encode())
                    hashes.append(digest.hexdigest()[:16])
                lines.write((json.dumps([step, *hashes]) + "\n").encode())


def spawn(config: DataConfig, log: Path, steps: int, rank: int = 0, world: int = 1) -> subprocess.Popen:
    """`stream` in a process group of its own."""
    words = [sys.executable, __file__, "--child", config.model_dump_json(), str(log), str(steps), str(rank), str(world)]
    return subprocess.Popen(words, start_new_session=True)


def main() -> None:
    """Kill, compare, write JSON."""
    if sys.argv[1:2] == ["--child"]:
        settings, log, steps, rank, world = sys.argv[2:]
        stream(DataConfig.model_validate_json(settings), Path(log), int(steps), int(rank), int(world))
        return
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--steps", type=int, default=1500)
    given = parser.parse_args()
    given.work.mkdir(parents=True, exist_ok=True)
    config = config_of(given.data, given.work, 2)
    for log in given.work.glob("*.log"):
        log.unlink()
    reference = given.work / "whole.log"
    assert spawn(config, reference, given.steps).wait() == 0
    wanted = reference.read_bytes().splitlines()
    kills = killed(config, given.work / "killed.log", given.steps, given.kills)
    same = (given.work / "killed.log").read_bytes().splitlines() == wanted
    crops = sum(len(json.loads(line)) - 1 for line in wanted)
    result: dict[str, object] = {"steps": given.steps, "crops": crops, "kills": kills, "sequence_equal": same}
    print(f"{len(kills)} kills over {crops} crops: sequence {'equal' if same else 'DIFFERS'}")
    shown = min(300, given.steps)
    for world in (2, 4):
        logs = [given.work / f"rank{rank}of{world}.log" for rank in range(world)]
        processes = [spawn(config, log, shown, rank, world) for rank, log in enumerate(logs)]
        assert [process.wait() for process in processes] == [0] * world
        ranks = [[json.loads(line) for line in log.read_bytes().splitlines()] for log in logs]
        merged = [[lines[0][0], *(one for line in lines for one in line[1:])] for lines in zip(*ranks, strict=True)]
        result[f"world_{world}_equal"] = merged == [json.loads(line) for line in wanted[:shown]]
        print(f"world size {world}: {'equal' if result[f'world_{world}_equal'] else 'DIFFERS'}")
    record("resume", result)


def count(log: Path) -> int:
    """Steps that are logged."""
    return log.read_bytes().count(b"\n") if log.exists() else 0


def killed(config: DataConfig, log: Path, steps: int, kills: int) -> list[dict[str, int]]:
    """Runs the stream to its end through `kills` SIGKILLs of all its processes, each at a random moment."""
    rng, done, workers = random.Random(0), [], 0
    while True:
        process = spawn(config.model_copy(update={"workers": workers}), log, steps)
        before = count(log)
        # At a random step soon, a random moment within it; the last run goes to the end.
        target = before + rng.randrange(1, max(2, 2 * (steps - before) // max(1, kills - len(done) + 1)))
        while process.poll() is None and (len(done) == kills or count(log) < target):
            time.sleep(0.003)
        if process.poll() is not None:
            assert process.returncode == 0
            return done
        time.sleep(rng.random() * 0.02)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        done.append({"after_step": count(log), "workers": workers})
        workers = (workers + 1) % 4


if __name__ == "__main__":
    main()
