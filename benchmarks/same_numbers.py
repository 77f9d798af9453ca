"""Every number of two checkouts side by side: shards, losses, weights and studies have to be equal, bit for bit.

command: python benchmarks/same_numbers.py --before ../base/.venv/bin/python --data DATA --work runs/same
Both checkouts have their own `make install`, and only their command line is used, whatever the command is called and
wherever its modules lie. Both sides run the same words in turn, each in a folder of its own, on one thread.
Builds: sha256 of every file of a data set; in manifest.json the word scanfoundry is read as scanforge, and nothing else
is changed. Runs: every number of every step, as text, and the bytes of every released tensor. Studies: the same of
results.json and of the kept model. Left out (LEFT_OUT): times, rates, memory, versions of
packages, digests of trials. What only the later side has is counted apart ("added"). Tensors are compared by their
names without that of the part or network that holds them. The files model.json, config.yaml and the checkpoints name
software and folders: they are not compared.
"""

import argparse
import hashlib
import json
import os
import resource
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from record import record

NAMES = ("scanfoundry", "scanforge")  # of the command; the first one that lies beside the interpreter
# Names that are left out, by their last word. `minutes` is an option that went; a trial's digest is of its options too.
LEFT_OUT = {"samples_per_second", "data_wait", "memory_gib", "seconds", "spent", "versions", "digest", "minutes"}
# What names of tensors began with before models had parts, and begin with since.
HOLDERS = ("net.encoder.", "net.", "detector.network.feature_extractor.encoder.", "encoder.", "decoder.", "head.")
Facts = dict[str, str]  # what is compared, by name

SCANS, IMAGES = "{data}/msd_task04_hippocampus", "{data}/busi_breast_ultrasound"  # {data}: the folder of real scans
BUILDS = {  # the words of `data build`, as in a shell
    "volumes": f"{SCANS}/imagesTr --masks {SCANS}/labelsTr --modality mr",
    "images": f"{IMAGES}/images --masks {IMAGES}/masks --modality us",
    "dicom": "{data}/dicom_mixed --max-bad 1",
}
SHORT = """'data.sources=[{name: volumes, path: volumes, flip_axes: [0]}, {name: images, path: images}]'
data.crop_2d=[64,64] data.crop_3d=[16,32,32] data.batch_2d=4 data.batch_3d=4 data.workers=1 data.holdout=0.25 steps=8
optimiser.warmup_steps=2 checkpoint_every=100 picture_every=0 device=cpu threads=1"""
PAIRS = "contrastive_stunet_mixed objective.projector_hidden=64"
RESENC = "{name: resenc, features: [8, 16, 32], blocks: [1, 1, 1], strides: [[2, 2, 2], [2, 2, 2]]}"
RUNS = {  # a recipe, and what is changed in it after the words of SHORT
    "mae": "mae_vit_images",
    "spark": """spark_stunet_volumes 'ema={momentum: 0.9}'
        'probes=[{kind: segmentation, data: {path: volumes, crop: [16, 32, 32], scans: 12}}]'""",
    "contrastive nt_xent": f"{PAIRS} objective.loss=nt_xent 'backbone={RESENC}'",
    "contrastive dcl": f"{PAIRS} objective.loss=dcl 'backbone={{name: mednext, size: S}}'",
    "contrastive dclw": PAIRS,
    "contrastive moco_v3": f"""{PAIRS} objective.loss=moco_v3 'backbone={{name: primus, size: S}}'
        'data.sources=[{{name: volumes, path: volumes}}]' data.crop_2d=null""",
    "barlow_twins": "barlow_twins_projection objective.projector_hidden=64 objective.projector_dim=64",
    "weighted sum": "mae_and_contrastive_vit_mixed",
}
SMALL = """data.key_file=../key schedule.steps=6 schedule.warmup_steps=2 seeds=[0] shots=[4] split.test_fraction=0.05
bootstrap=50 worst_cases=2 device=cpu"""
FLAT = f"data.images={IMAGES}/images data.labels={IMAGES}/labels.csv plan.patch=[1,64,64] plan.batch=4"
STUDIES = {  # the same after SMALL; each compares the weights of a run above with training from scratch
    "segmentation": f"""hippocampus_segmentation data.images={SCANS}/imagesTr data.labels={SCANS}/labelsTr
        checkpoint=spark split.test_fraction=0.02 plan.patch=[32,48,32] self_training.rounds=0""",
    "classification": f"ultrasound_classification {FLAT} checkpoint=mae recipes=[full,lora,linear_probe]",
    "regression": f"""ultrasound_classification {FLAT} checkpoint=spark
        'task={{name: regression, label_column: mask_px}}'""",
    "detection": f"ultrasound_detection {FLAT} checkpoint=spark data.labels={IMAGES}/masks",
}


def command_of(python: str) -> Path:
    """The console script beside an interpreter."""
    folder = Path(os.path.abspath(python)).parent
    found = [folder / name for name in NAMES if (folder / name).exists()]
    if not found:
        raise SystemExit(f"{folder} holds none of {', '.join(NAMES)}: make install in that checkout")
    return found[0]


def commit_of(command: Path) -> str:
    """What is checked out where `command` is installed in .venv/bin."""
    words = ["git", "-C", str(command.parents[2]), "describe", "--always", "--dirty"]
    return subprocess.run(words, capture_output=True, text=True, check=True).stdout.strip()


def run(command: Path, words: list[str], folder: Path) -> float:
    """CPU seconds of one command in `folder`, children included; its output only where it failed."""
    environment = {**os.environ, "PYTHONSAFEPATH": "1", "OMP_NUM_THREADS": "1"}
    before = cpu_seconds()
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    done = subprocess.run([command, *words], cwd=folder, env=environment, text=True, **pipes)
    if done.returncode:
        raise SystemExit(f"{command} {shlex.join(words)} failed in {folder}:\n{done.stdout}")
    return cpu_seconds() - before


def cpu_seconds() -> float:
    """User and system seconds of all children that have ended."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def of_files(folder: Path) -> Facts:
    """The sha256 of each file of a data set."""
    found = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        content = path.read_bytes()
        if path.name == "manifest.json":
            content = content.replace(NAMES[0].encode(), NAMES[1].encode())
        found[str(path.relative_to(folder))] = hashlib.sha256(content).hexdigest()
    return found


def leaves(value: Any, name: str) -> Facts:
    """Every number, text and empty container below `value` by its place, without those of LEFT_OUT."""
    if name.rpartition("/")[2] in LEFT_OUT:
        return {}
    if isinstance(value, dict | list) and value:
        pairs = value.items() if isinstance(value, dict) else enumerate(value)
        return {place: text for key, each in pairs for place, text in leaves(each, f"{name}/{key}").items()}
    return {name: str(value)}


def of_tensors(path: Path) -> Facts:
    """The sha256 of each tensor's type, shape and bytes; the metadata of the file may name the software."""
    content = path.read_bytes()
    start = 8 + int.from_bytes(content[:8], "little")
    found = {}
    for name, entry in json.loads(content[8:start]).items():
        if name != "__metadata__":
            first, last = (start + offset for offset in entry["data_offsets"])
            head = json.dumps([entry["dtype"], entry["shape"]]).encode()
            found[f"tensor {bare(name)}"] = hashlib.sha256(head + content[first:last]).hexdigest()
    return found


def bare(name: str) -> str:
    """A tensor's name without that of its part, and then of its network."""
    for _ in range(2):
        name = next((name.removeprefix(holder) for holder in HOLDERS if name.startswith(holder)), name)
    return name


def of_run(folder: Path) -> Facts:
    """Every number of every step, the patients and the released tensors."""
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    steps = leaves([json.loads(line, parse_float=str) for line in lines], "steps")
    return {**steps, "patients": (folder / "patients.txt").read_text(), **of_tensors(folder / "model.safetensors")}


def of_study(folder: Path) -> Facts:
    """Every number of the results, and the tensors of the model that is kept."""
    results = json.loads((folder / "results.json").read_text(), parse_float=str)
    return {**leaves(results, "results"), **of_tensors(folder / "model.safetensors")}


def jobs(data: Path) -> dict[str, tuple[list[str], str, Callable[[Path], Facts]]]:
    """What runs, in this order: its words, the folder it writes, and what is compared of that."""
    found: dict[str, tuple[str, str, Callable[[Path], Facts]]] = {}
    for name, words in BUILDS.items():
        found[f"build: {name}"] = f"data build {words} --out {name} --workers 1 --key-file ../key", name, of_files
    for kind, command, changes, table, facts in (
        ("run", "pretrain", SHORT, RUNS, of_run),
        ("study", "finetune", SMALL, STUDIES, of_study),
    ):
        for name, words in table.items():
            recipe, _, changed = words.partition(" ")
            out = name.replace(" ", "_")
            found[f"{kind}: {name}"] = f"{command} {recipe} {changes} {changed} run_dir={out}", out, facts
    return {
        title: ([word.replace("{data}", str(data)) for word in shlex.split(words)], out, facts)
        for title, (words, out, facts) in found.items()
    }


def differences(before: Facts, after: Facts) -> list[str]:
    """One line for each fact of the earlier side that is not the same on the later one."""
    pairs = ((name, old, after.get(name, "absent")) for name, old in before.items())
    return [f"{name}: {old} before, {new} after" for name, old, new in pairs if old != new]


def main() -> None:
    """Run everything on both sides, print a line for each item, write results/same_numbers.json; 1 if they differ."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--before", required=True, help="the other checkout's .venv/bin/python")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True, help="what it holds of earlier comparisons is removed")
    given = parser.parse_args()
    commands = {"before": command_of(given.before), "after": command_of(sys.executable)}
    for side in commands:
        shutil.rmtree(given.work / side, ignore_errors=True)
        (given.work / side).mkdir(parents=True)
    key = given.work / "key"
    key.touch(0o600)
    key.write_text(hashlib.sha256(b"same numbers").hexdigest())
    items, seconds = {}, dict.fromkeys(commands, 0.0)
    for title, (words, out, facts) in jobs(given.data.resolve()).items():
        for side, command in commands.items():
            seconds[side] += run(command, words, given.work / side)
        found = {side: facts(given.work / side / out) for side in commands}
        unequal = differences(found["before"], found["after"])
        added = len(found["after"].keys() - found["before"].keys())
        items[title] = {
            "compared": len(found["before"]), "different": len(unequal), "first": unequal[:1], "added": added,
        }  # fmt: skip
        said = f"{len(unequal)} differ, the first: {unequal[0]}" if unequal else "equal"
        print(f"{title}: {said} ({len(found['before'])} compared)", flush=True)
    sides = {
        side: {"command": path.name, "commit": commit_of(path), "cpu_seconds": round(seconds[side])}
        for side, path in commands.items()
    }
    record("same_numbers", {"sides": sides, "left out": sorted(LEFT_OUT), "items": items})
    sys.exit(any(item["different"] for item in items.values()))


if __name__ == "__main__":
    main()
