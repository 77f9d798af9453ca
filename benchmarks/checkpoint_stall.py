"""How long a checkpoint holds the training up, beside another version of the code; and kills while one is written.

command: python benchmarks/checkpoint_stall.py [--size L] [--every 12] [--checkpoints 5] [--before FOLDER] [--kills 30]

Two gloo ranks pre-train an STU-Net by SparK, on scans that are drawn. Their first step is a real one; the later ones
only sleep, as a CPU does while a GPU computes, so that what is measured is the checkpoint. The *stall* of one is the
time between its step and the next one, less what lies between other steps. `seconds_in_all` is what steps and pauses
from one checkpoint to the next took beyond as many undisturbed ones. `--before` is a folder with the code to compare
with (`git worktree add FOLDER COMMIT`); this script runs both, one after the other.

`--kills` kills a run of two ranks again and again while a checkpoint or its release is being written, all ranks or one
of them, until it has happened so often; losses and weights must be those of a run that was left alone.
"""

import argparse
import json
import multiprocessing
import os
import random
import resource
import socket
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path
from statistics import median
from typing import Any

import yaml
from record import record

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("configs", "backbones", "datasets", "pretrain", "finetune", "launch")
FORKS = multiprocessing.get_context("forkserver")  # for the kills: each start would import for seconds


def make_shards(folder: Path) -> Path:
    """Shards of eight smooth volumes."""
    import nibabel
    import numpy as np
    from scipy import ndimage

    from scanfoundry.datasets.shards.build import BuildOptions, build

    (folder / "scans").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for number in range(8):
        volume = 100 * ndimage.gaussian_filter(rng.normal(size=(34, 36, 33)), 2)
        nibabel.save(nibabel.Nifti1Image(volume.astype(np.float32), np.eye(4)), folder / "scans" / f"{number}.nii.gz")
    options = BuildOptions(modality="mr", workers=1, key_file=folder / "site.key")
    build([folder / "scans"], folder / "shards", options, None)
    return folder / "shards"


def content(shards: Path, run_dir: Path, size: str, steps: int, every: int) -> dict[str, Any]:
    """The configuration of a run, valid in both versions."""
    return {
        "run_dir": str(run_dir), "seed": 3, "steps": steps, "checkpoint_every": every, "keep_last": 1, "threads": 1,
        "monitor_crops": 0, "backbone": {"name": "stunet", "size": size, "strides": [[2, 2, 2]] * 4 + [[1, 1, 1]]},
        "objective": {"name": "spark", "block_3d": [16, 16, 16]}, "optimiser": {"lr": 1e-4, "warmup_steps": 2},
        "data": {"sources": [{"name": "mr", "path": str(shards)}], "crop_3d": [32, 32, 32], "batch_3d": 2,
                 "workers": 0},
    }  # fmt: skip


def timed_rank(config: Path, out: Path, seconds: float) -> None:
    """One rank of a run; notes when each step, of so many seconds, begins and ends."""
    from scanfoundry.configs.loading import check
    from scanfoundry.pretrain.config.run import PretrainConfig
    from scanfoundry.pretrain.distributed.world import join, leave
    from scanfoundry.pretrain.training import loop
    from scanfoundry.pretrain.training.steps import Steps

    times: list[tuple[int, float, float]] = []
    step_of_loop = Steps._step

    def step(self: Any, number: int, batches: Any) -> int:
        began = time.perf_counter()
        done = step_of_loop(self, number, batches)
        times.append((done, began, time.perf_counter()))
        return done

    Steps._step = step
    real, first = loop.Engine.launch, []

    def asleep(self: Any, batches: Any, *given: Any) -> Any:
        if not first:
            first.append(real(self, batches, *given))
        else:
            list(batches)  # read as ever
            time.sleep(seconds)
        return first[0]

    loop.Engine.launch = asleep
    before = time.process_time()
    loop.run(check(PretrainConfig, yaml.safe_load(config.read_text()), "benchmark"))
    usage = resource.getrusage(resource.RUSAGE_SELF)
    found = {"times": times, "cpu": time.process_time() - before, "peak_gb": usage.ru_maxrss * 1024 / 1e9}
    out.write_text(json.dumps(found))
    leave(join("cpu", 1))
    os._exit(0)


def environments(ranks: int = 2) -> list[dict[str, str]]:
    """What tells each rank who it is."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    common = {"WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": "1"}
    return [{**common, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(ranks)]


def packages_of(checkout: Path, folder: Path) -> Path:
    """A folder that makes `scanfoundry` importable from a checkout."""
    (folder / "scanfoundry").mkdir(parents=True)
    for name in PACKAGES:
        (folder / "scanfoundry" / name).symlink_to(checkout.resolve() / name)
    return folder


def run(code: Path, config: dict[str, Any], folder: Path, seconds: float) -> list[dict[str, Any]]:
    """A run of two ranks by the code in a folder; gives what each has noted."""
    folder.mkdir()
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    ranks = []
    for number, environment in enumerate(environments()):
        words = [sys.executable, __file__, "--rank", str(folder / "config.yaml"), str(folder / f"{number}.json")]
        words.append(str(seconds))
        environment |= {"PYTHONPATH": os.pathsep.join((str(code), str(Path(__file__).parent)))}
        with open(folder / f"{number}.log", "w") as log:
            ranks.append(subprocess.Popen(words, env=os.environ | environment, stderr=log))
    codes = [rank.wait() for rank in ranks]
    if any(codes):
        raise SystemExit(f"a run by {code} failed with {codes}: {(folder / '0.log').read_text()[-2000:]}")
    return [json.loads((folder / f"{number}.json").read_text()) for number in range(len(ranks))]


def stalls(ranks: list[dict[str, Any]], every: int) -> dict[str, Any]:
    """What the checkpoints of a run cost, the slowest rank each time."""
    found: dict[str, Any] = {"stalls": [], "seconds_in_all": []}
    for rank in ranks:
        times = rank["times"]
        pauses = {step: times[i + 1][1] - end for i, (step, _, end) in enumerate(times[:-1])}
        steps = {step: end - begin for step, begin, end in times}
        usual = median(pause for step, pause in pauses.items() if step % every)
        # the second half of the way to the next checkpoint is free of the one before
        quiet = median(seconds for step, seconds in steps.items() if step % every > every // 2 or step % every == 0)
        due = [step for step in pauses if step % every == 0]
        found["stalls"].append([pauses[step] - usual for step in due])
        whole = [step for step in due if step + every in steps]
        found["seconds_in_all"].append(
            [times[step + every - 1][2] - times[step - 1][2] - every * (quiet + usual) for step in whole]
        )
        found["step_seconds"] = quiet
    result = {name: [round(max(each), 4) for each in zip(*found[name], strict=True)] for name in list(found)[:2]}
    result |= {f"median_{name}": median(values) for name, values in result.items()}
    result |= {
        "step_seconds": round(found["step_seconds"], 3),
        "cpu_seconds": round(sum(rank["cpu"] for rank in ranks), 2),
        "peak_gb_of_a_rank": round(max(rank["peak_gb"] for rank in ranks), 2),
    }
    return result


def forked_rank(config: dict[str, Any], environment: dict[str, str]) -> None:
    """One rank of a run that is killed."""
    from scanfoundry.configs.loading import check
    from scanfoundry.pretrain.config.run import PretrainConfig
    from scanfoundry.pretrain.training.loop import run as pretrain

    os.environ.update(environment)
    os.dup2(os.open(f"{config['run_dir']}-{environment['RANK']}.log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
    try:
        pretrain(check(PretrainConfig, config, "benchmark"))
    except BaseException:
        traceback.print_exc()
        os._exit(1)  # it lost the rank that was killed
    os._exit(0)


def under_way(run_dir: Path) -> str | None:
    """Which part of a checkpoint is being written."""
    if list((run_dir / "checkpoints").glob(".tmp-*")):
        return "files"
    return "release" if list(run_dir.glob(".model.safetensors.*.part")) else None


def killed(config: dict[str, Any], draw: random.Random) -> str | None:
    """Start the run and kill it while a checkpoint is written; the part that was, None if it came to its end."""
    run_dir, part = Path(config["run_dir"]), draw.choice(["files", "files", "release"])
    ranks = [FORKS.Process(target=forked_rank, args=(config, environment)) for environment in environments()]
    for rank in ranks:
        rank.start()
    count = draw.randrange(1, 3)  # of the checkpoints that are let through
    seen, inside = 0, False
    while all(rank.is_alive() for rank in ranks):
        now = under_way(run_dir) == part
        seen, inside = seen + (now and not inside), now
        if inside and seen > count:
            time.sleep(draw.uniform(0, 0.05))
            found = under_way(run_dir)
            victims = ranks if draw.random() < 0.5 else [draw.choice(ranks)]
            for victim in victims:
                victim.kill()
            for rank in ranks:
                rank.join(20)
                rank.kill()
                rank.join()
            if found is not None:
                return found
            return "between"
        time.sleep(0.0005)
    for rank in ranks:
        rank.join()
    if any(rank.exitcode for rank in ranks):
        raise SystemExit(f"a run failed by itself: {Path(f'{run_dir}-0.log').read_text()[-2000:]}")
    return None


def kills(shards: Path, folder: Path, wanted: int) -> dict[str, Any]:
    """Kill one run so often, and compare it with one that was left alone."""
    os.environ["DS_ACCELERATOR"] = "cpu"
    FORKS.set_forkserver_preload(["deepspeed", "scanfoundry.pretrain.training.loop"])
    folder.mkdir()
    base = content(shards, folder, "S", 6 * wanted, 2) | {
        "backbone": {"name": "resenc", "features": [32, 64, 128], "blocks": [1, 1, 1], "strides": [[2, 2, 2]] * 2},
        "objective": {"name": "mae", "block_3d": [4, 4, 4]},
    }
    base["data"] |= {"crop_3d": [16, 16, 16]}
    draw, parts = random.Random(0), {"files": 0, "release": 0, "between": 0}
    while parts["files"] + parts["release"] < wanted:
        part = killed(base | {"run_dir": str(folder / "killed")}, draw)
        if part is None:
            raise SystemExit(f"the run ended by itself after {parts}: more steps are needed")
        parts[part] += 1
        print(parts, flush=True)
    for name in ("killed", "straight"):
        ranks = [
            FORKS.Process(target=forked_rank, args=(base | {"run_dir": str(folder / name)}, environment))
            for environment in environments()
        ]
        for rank in ranks:
            rank.start()
        for rank in ranks:
            rank.join()
    lines = [(folder / name / "metrics.jsonl").read_text().splitlines() for name in ("killed", "straight")]
    losses = [[(json.loads(line)["step"], json.loads(line)["loss"]) for line in each] for each in lines]
    weights = [(folder / name / "model.safetensors").read_bytes() for name in ("killed", "straight")]
    return {
        "kills": parts, "steps": len(losses[1]), "losses_equal": losses[0] == losses[1],
        "weights_equal": weights[0] == weights[1],
    }  # fmt: skip


def main() -> None:
    """Measure, kill, write JSON."""
    if sys.argv[1:2] == ["--rank"]:
        timed_rank(Path(sys.argv[2]), Path(sys.argv[3]), float(sys.argv[4]))
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", default="B", choices=["S", "B", "L", "H"])
    parser.add_argument("--every", type=int, default=12, help="Steps between checkpoints.")
    parser.add_argument("--seconds", type=float, default=1.0, help="Of a step.")
    parser.add_argument("--checkpoints", type=int, default=5, help="0: only the kills.")
    parser.add_argument("--before", type=Path, help="A checkout to compare with.")
    parser.add_argument("--kills", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="For the runs: the file system that is measured.")
    parser.add_argument("--out", default="checkpoint_stall", help="Name of the result; empty: only printed.")
    given = parser.parse_args()
    result: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(dir=given.folder) as name:
        folder = Path(name)
        shards = make_shards(folder / "data")
        versions = {"before": given.before, "now": ROOT} if given.before else {"now": ROOT}
        for version, checkout in versions.items() if given.checkpoints else ():
            code = packages_of(checkout, folder / "code" / version)
            steps = given.every * (given.checkpoints + 1)
            ranks = run(
                code, content(shards, folder / "run", given.size, steps, given.every), folder / version, given.seconds
            )
            result[version] = stalls(ranks, given.every)
            print(version, json.dumps(result[version]), flush=True)
            subprocess.run(["rm", "-rf", str(folder / "run")], check=True)
        if "before" in result:
            result["ratio"] = round(result["now"]["median_stalls"] / result["before"]["median_stalls"], 4)
            print("ratio", result["ratio"])
        if given.kills:
            result["killed"] = kills(shards, folder / "kills", given.kills)
            print(json.dumps(result["killed"]))
    if given.out:
        record(given.out, result)


if __name__ == "__main__":
    main()
