"""Two nodes of a real SLURM cluster: every loss of runs that are cut short again and again, against undisturbed ones.

command: bash tests/slurm/start_slurm.sh
         scanfoundry data build HIPPOCAMPUS/imagesTr --out runs/shards/hippocampus \
             --modality mr
         python benchmarks/requeue.py --shards runs/shards/hippocampus --work runs/requeue --name requeue
Each case (STU-Net-S with SparK, ViT-Ti with MAE; ZeRO 2 and 3) runs once undisturbed in the partition that nobody
preempts, and once in the other with a limit of one minute: at least three ends by that real limit, one preemption by
a job of the higher partition that takes both nodes, one `kill -9` of a rank. Then the limit is lifted and it finishes.
`--work` must not hold runs yet. About five minutes a case on two free cores, most of it SLURM's clock.
"""

import argparse
import hashlib
import json
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml
from product import SCANFOUNDRY
from record import record

MODELS: dict[str, dict[str, Any]] = {
    "stunet_s_spark": {
        "backbone": {"name": "stunet", "size": "S", "strides": [[2, 2, 2]] * 3 + [[1, 1, 1]] * 2},
        "objective": {"name": "spark", "block_3d": [8, 8, 8], "block_2d": [8, 8]},
    },
    "vit_ti_mae": {
        "backbone": {"name": "vit", "size": "Ti", "patch_2d": [16, 16], "patch_3d": [8, 8, 8]},
        "objective": {"name": "mae"},
    },
}
COMMON: dict[str, Any] = {
    "seed": 5, "checkpoint_every": 25, "keep_last": 2, "threads": 1, "monitor_crops": 0, "step_timeout_s": 120,
    "optimiser": {"lr": 5e-4, "warmup_steps": 5},
}  # fmt: skip
DATA = {"crop_2d": None, "crop_3d": [32, 32, 32], "workers": 0}


def notes(run_dir: Path, event: str) -> list[dict[str, Any]]:
    """The job's own lines about its lives: `start` or `end`."""
    found = sorted(run_dir.glob("jobs/*/lives.jsonl"))
    lines = [json.loads(line) for line in found[-1].read_text().splitlines()] if found else []
    return [line for line in lines if line["event"] == event]


def metrics(run_dir: Path) -> list[dict[str, Any]]:
    """The logged steps so far; the last line may still be half."""
    path = run_dir / "metrics.jsonl"
    text = path.read_text() if path.exists() else ""
    return [json.loads(line) for line in text.splitlines() if line.endswith("}")]


def until(condition: Callable[[], object], run_dir: Path, what: str, seconds: float = 600) -> None:
    """Wait; a run that is over before `condition` came needs more steps."""
    limit = time.monotonic() + seconds
    while not condition():
        if any(end["action"] == "end" for end in notes(run_dir, "end")) and not condition():
            sys.exit(f"{run_dir} ended before {what}: {notes(run_dir, 'end')[-1]['reason']}; give it more --steps")
        if time.monotonic() > limit:
            sys.exit(f"{run_dir}: waited {seconds:g} s in vain for {what}")
        time.sleep(0.2)


def launch(config: Path, defaults: dict[str, Any], work: Path, *words: str) -> str:
    """Submit; gives the job's id."""
    site = work / "site.yaml"
    site.write_text(yaml.safe_dump({"nodes": 2, **defaults}))
    command = [SCANFOUNDRY, "launch", str(config), "--defaults", str(site), *words]
    said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return said.split()[1].rstrip(";")


def rank_process(job: str, rank: int) -> int:
    """The process of one rank of a job on this host, both of whose nodes are here."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "cmdline").read_bytes().split(b"\0")
            environment = (folder / "environ").read_bytes().split(b"\0")
        except OSError:
            continue
        place = {f"SLURM_JOB_ID={job}".encode(), f"SLURM_PROCID={rank}".encode()}
        if words[1:4] == [b"-u", b"-m", b"submitit.core._submit"] and place <= set(environment):
            return int(folder.name)
    raise LookupError(f"rank {rank} of job {job} is not on this host")


def disturb(run_dir: Path, job: str, limits: int, preemptions: int, kills: int) -> dict[str, list[dict[str, Any]]]:
    """Let the limit end `limits` lives, then preempt and kill; gives what ended the lives, with the step kept."""
    until(lambda: len(notes(run_dir, "end")) >= limits, run_dir, f"{limits} time limits", 150 * limits)
    causes = {"time limit": notes(run_dir, "end")[:limits], "preemption": [], "kill -9": []}
    subprocess.run(["scontrol", "update", f"JobId={job}", "TimeLimit=60"], check=True)
    for cause, times in (("preemption", preemptions), ("kill -9", kills)):
        for _ in range(times):
            ends, done = len(notes(run_dir, "end")), len(metrics(run_dir))
            until(lambda: len(notes(run_dir, "start")) > ends, run_dir, "the next start")  # noqa: B023
            until(lambda: len(metrics(run_dir)) >= done + 3, run_dir, "three more steps")  # noqa: B023
            if cause == "preemption":
                words = ["-p", "high", "--nodes=2", "--ntasks-per-node=2", "--mem=64", "--time=1", "--output=/dev/null"]
                subprocess.run(["sbatch", *words, "--wrap", "sleep 3"], check=True, capture_output=True)
            else:
                os.kill(rank_process(job, 1), signal.SIGKILL)
            asked = time.monotonic()
            until(lambda: len(notes(run_dir, "end")) > ends, run_dir, f"the end by {cause}", 120)  # noqa: B023
            causes[cause].append(notes(run_dir, "end")[ends] | {"seconds": round(time.monotonic() - asked, 1)})
    until(lambda: any(end["action"] == "end" for end in notes(run_dir, "end")), run_dir, "the end", 3600)
    return causes


def pauses(run_dir: Path) -> list[float]:
    """Seconds from the end of each life to the start of the next."""
    times = [line["time"] for line in notes(run_dir, "end")]
    return [round(after["time"] - before, 1) for before, after in
            zip(times, notes(run_dir, "start")[1:], strict=False)]  # fmt: skip


def case(model: str, stage: int, given: argparse.Namespace) -> dict[str, Any]:
    """One model at one ZeRO stage, undisturbed and disturbed."""
    work = given.work / f"{model}-zero{stage}"
    work.mkdir(parents=True)
    data = DATA | {"batch_3d": given.batch, "sources": [{"name": "mr", "path": str(given.shards.absolute())}]}
    engine = {"zero_stage": stage}
    config = work / "run.yaml"
    content = {**MODELS[model], **COMMON, "steps": given.steps, "data": data, "engine": engine}
    config.write_text(yaml.safe_dump(content | {"run_dir": str(work / "straight")}))
    straight, cut = work / "straight", work / "cut"
    started = time.monotonic()
    launch(config, {"partition": "high", "timeout_min": 240}, work)
    until(lambda: notes(straight, "end"), straight, "the end", 7200)
    seconds = time.monotonic() - started
    started = time.monotonic()
    job = launch(config, {"partition": "main", "timeout_min": 1, "signal_delay_s": 5}, work, f"run_dir={cut}")
    causes = disturb(cut, job, given.limits, given.preemptions, given.kills)
    one, other = metrics(straight), metrics(cut)
    sums = [hashlib.sha256((d / "model.safetensors").read_bytes()).hexdigest() for d in (straight, cut)]
    shown = subprocess.run(["scontrol", "show", "job", job], capture_output=True, text=True).stdout
    result = {
        "steps": len(one), "losses_equal": [x["loss"] for x in one] == [x["loss"] for x in other],
        "steps_in_order": [x["step"] for x in other] == list(range(1, given.steps + 1)),
        "weights_equal": sums[0] == sums[1], "restarts_by_slurm": int(shown.partition("Restarts=")[2].split()[0]),
        "ended_at_step": {cause: [end["step"] for end in ends] for cause, ends in causes.items()},
        "seconds_to_end": {cause: [end["seconds"] for end in causes[cause]] for cause in ("preemption", "kill -9")},
        "all_ends": [end["kind"] for end in notes(cut, "end")], "seconds_between_lives": pauses(cut),
        "loss_first_and_last": [one[0]["loss"], one[-1]["loss"]],
        "seconds_straight": round(seconds), "seconds_cut": round(time.monotonic() - started),
    }  # fmt: skip
    print(json.dumps({f"{model} zero {stage}": result}, indent=1), flush=True)
    return result


def main() -> None:
    """Every case; write JSON; exit code 1 if anything differs."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--shards", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--name", required=True)
    parser.add_argument("--models", nargs="+", choices=list(MODELS), default=list(MODELS))
    parser.add_argument("--stages", nargs="+", type=int, default=[2, 3])
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--limits", type=int, default=3)
    parser.add_argument("--preemptions", type=int, default=1)
    parser.add_argument("--kills", type=int, default=1)
    given = parser.parse_args()
    given.work = given.work.absolute()
    cases = {f"{model}, ZeRO {stage}": case(model, stage, given) for model in given.models for stage in given.stages}
    medians = [statistics.median(one["seconds_between_lives"]) for one in cases.values()]
    good = all(one["losses_equal"] and one["weights_equal"] and one["steps_in_order"] for one in cases.values())
    record(given.name, {"all_equal": good, "median_seconds_between_lives": medians, "cases": cases})
    sys.exit(0 if good else 1)


if __name__ == "__main__":
    main()
