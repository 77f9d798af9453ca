"""nnU-Net v2 beside our fine-tuning: the same training cases, the same time, the same test cases, the same Dice.

command: python benchmarks/nnunet.py RECIPE --python PYTHON_OF_NNUNET --work DIR --shots 10 --minutes 20 --name NAME
             [--peer-only | --ours-only] key=value ...
RECIPE and the words are those of `scanfoundry finetune`, with the data; `budget` is set to `--minutes`, and
shots and seed to one each. nnU-Net lives in a Python of its own (pip install nnunetv2==2.8.1), so that its pins and
ours stay apart. Nothing else may run beside it: both sides take both cores, one after the other.
"""

import argparse
import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
from record import record

from scanfoundry.configs.loading import check, find, override, read_yaml
from scanfoundry.finetune.cases.cases import Case
from scanfoundry.finetune.cases.sources import scan_file
from scanfoundry.finetune.cases.volumes import read_labels
from scanfoundry.finetune.config.study import FinetuneConfig
from scanfoundry.finetune.metrics.dice import dice, mean_defined
from scanfoundry.finetune.metrics.intervals import interval
from scanfoundry.finetune.model_file import adapter_for
from scanfoundry.finetune.run_study import run
from scanfoundry.finetune.study.prepare import Study, prepare
from scanfoundry.finetune.study.split import shots
from scanfoundry.finetune.task import Adapter

PEER = Path(__file__).parent / "peers" / "nnunet_peer.py"


def settled(given: argparse.Namespace) -> FinetuneConfig:
    """The study of one number of shots and one seed, ended by time."""
    words = [*given.words, f"shots=[{given.shots}]", f"seeds=[{given.seed}]", f"budget={given.minutes}min"]
    words += [f"run_dir={given.work / 'ours'}"]
    return check(FinetuneConfig, override(read_yaml(find(given.recipe, "finetune")), words), "benchmark")


def lay_out(study: Study, cases: list[Case], folder: Path) -> None:
    """nnU-Net's raw data set: training cases by number, test cases by their key."""
    root = folder / "nnUNet_raw" / "Dataset004_Peer"
    for name in ("imagesTr", "labelsTr", "imagesTs"):
        (root / name).mkdir(parents=True)
    for number, case in enumerate(cases):
        shutil.copyfile(str(case.images[0]), root / "imagesTr" / f"case{number:03d}_0000.nii.gz")
        shutil.copyfile(str(case.target), root / "labelsTr" / f"case{number:03d}.nii.gz")
    for case in study.sides.test:
        shutil.copyfile(str(case.images[0]), root / "imagesTs" / f"{case.key}_0000.nii.gz")
    labels = {"background": 0} | {name: number for number, name in enumerate(study.spec.classes, start=1)}
    channel = "CT" if study.spec.modality == "ct" else "MRI"
    about = {"channel_names": {"0": channel}, "labels": labels, "numTraining": len(cases), "file_ending": ".nii.gz"}
    (root / "dataset.json").write_text(json.dumps(about))


def peer_scores(study: Study, adapter: Adapter[Any, Any], folder: Path) -> list[dict[str, Any]]:
    """Records of nnU-Net's predictions, by our own Dice at the file's grid."""
    records = []
    for case in study.sides.test:
        scan, _ = adapter.read(case)
        truth = read_labels(case.target, scan)  # type: ignore[arg-type]
        found = read_labels(scan_file(folder / "predicted" / f"{case.key}.nii.gz"), scan)
        values = dice(found, truth, len(study.spec.classes))
        records.append({"case": case.key, "patient": case.patient, "score": mean_defined(values)})
    return records


def mean(records: list[dict[str, Any]]) -> float:
    return float(np.mean([one["score"] for one in records]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe")
    parser.add_argument("words", nargs="*")
    parser.add_argument("--python", type=Path)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--shots", default="10")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=20.0)
    parser.add_argument("--name", required=True)
    parser.add_argument("--peer-only", action="store_true")
    parser.add_argument("--ours-only", action="store_true")
    given = parser.parse_intermixed_args()
    given.work = given.work.absolute()
    config = settled(given)
    study = prepare(config)
    k: int | str = "all" if given.shots == "all" else int(given.shots)
    cases, found = shots(study.sides.pool, k, given.seed), {}
    if not given.ours_only:
        lay_out(study, cases, given.work)
        environment = {key: value for key, value in os.environ.items() if key != "PYTHONSAFEPATH"}
        subprocess.run([given.python, PEER, given.work, str(given.minutes)], env=environment, check=True)
        records = peer_scores(study, adapter_for(study.spec), given.work)
        about = json.loads((given.work / "peer.json").read_text())
        found["nnU-Net v2"] = about | {"dice": interval([records], mean, 1000).model_dump()}
        print(found, flush=True)
    if not given.peer_only:
        results = json.loads(run(config).results.read_text())
        for row in results["table"]:
            found[row["arm"]] = {"dice": row["metrics"]["dice"]}
        for cell in results["cells"]:
            found[cell["arm"]]["steps"] = [one["steps"] for one in cell["histories"]]
            found[cell["arm"]]["seconds"] = [one["seconds"] for one in cell["histories"]]
    sizes = {"training_cases": len(cases), "test_cases": len(study.sides.test), "minutes": given.minutes}
    record(given.name, sizes | found)
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
