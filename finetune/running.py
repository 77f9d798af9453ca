"""`run(config)`: the study from data to report."""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bars

from scanforge.backbones import read_release
from scanforge.backbones.registry import build
from scanforge.backbones.release import Release
from scanforge.configs.errors import UserError
from scanforge.datasets.identity import site_fingerprint, site_key
from scanforge.datasets.intensity import IntensityConfig
from scanforge.finetune.adapter import Spec
from scanforge.finetune.cases import Case, CaseList, discover
from scanforge.finetune.cells import CellName, CellResult, digest, run_cell, stored
from scanforge.finetune.config import FinetuneConfig
from scanforge.finetune.modelfile import INFO, WEIGHTS, pick_device
from scanforge.finetune.plan import settle_plan
from scanforge.finetune.report import write_report
from scanforge.finetune.results import Results, summarise
from scanforge.finetune.split import Split, shots, split
from scanforge.finetune.storage import write_json
from scanforge.finetune.training import Progress
from scanforge.finetune.volumes import read_labels, read_one


@dataclass(frozen=True)
class RunResult:
    """Where a study's output lies."""

    run_dir: Path
    report: Path
    results: Path
    model: Path  # the folder that `predict` takes


@dataclass(frozen=True)
class Study:
    """Everything settled before the first step of training."""

    config: FinetuneConfig
    found: CaseList
    sides: Split
    spec: Spec
    release: Release | None

    @property
    def names(self) -> list[CellName]:
        """All cells, in the order they run."""
        c = self.config
        return [CellName(arm, k, seed) for k in c.shots for seed in c.seeds for arm in c.arms]

    @property
    def best(self) -> CellName:
        """The cell whose model is kept: most shots, the checkpoint's arm where there is one, the first seed."""
        most = max(self.config.shots, key=lambda k: np.inf if k == "all" else k)
        return CellName(self.config.arms[0], most, self.config.seeds[0])


def run(config: FinetuneConfig) -> RunResult:
    """Run every cell that is not finished yet; write plan.json, results.json, report.html and the best model.

    The same configuration gives the same numbers; a run that was stopped goes on with the next unfinished cell.
    Raises UserError for mistakes in data or configuration before anything is trained.
    """
    study = prepare(config)
    results = summarise(study.config, study.spec, study.sides, study.found, _run_cells(study))
    folder = config.run_dir
    write_json(folder / "results.json", results.model_dump(mode="json"))
    best = folder / "cells" / study.best.folder
    shutil.copyfile(best / WEIGHTS, folder / WEIGHTS)
    shutil.copyfile(best / INFO, folder / INFO)
    report = write_report(folder, results, study.best)
    _tell(results)
    return RunResult(folder, report, folder / "results.json", folder)


def prepare(config: FinetuneConfig) -> Study:
    """Read the lists, split, plan; UserError for whatever is wrong with them."""
    release = read_release(config.checkpoint) if config.checkpoint else None
    backbone = release.info.backbone if release else config.backbone
    assert backbone is not None
    found = discover(config.data, config.task)
    sides = split(found.cases, config.split, release.patients if release else [])
    if release:
        own = site_fingerprint(site_key(config.data.key_file))
        sites = {source.site for source in release.info.sources}
        sides = replace(sides, comparable=sites == {own})
    for k in config.shots:
        for seed in config.seeds:
            shots(sides.pool, k, seed)
    classes = _classes_in(found.cases) if found.classes is None else found.classes
    config.run_dir.mkdir(parents=True, exist_ok=True)
    with torch.device("meta"):
        encoder = build(backbone)
    plan = settle_plan(config.run_dir / "plan.json", [case.image for case in sides.pool], config.plan, encoder)
    intensity = IntensityConfig.model_validate(release.info.intensity) if release else IntensityConfig()
    spec = Spec(
        task=config.task,
        classes=classes,
        modality=config.data.modality,
        intensity=intensity,
        backbone=backbone,
        plan=plan,
        inference=config.inference,
        flip_axes=config.augmentation.flip_axes,
    )
    return Study(config, found, sides, spec, release)


def _classes_in(cases: Sequence[Case]) -> list[str]:
    """Names of the labels 1..n that the label maps hold; UserError where all are empty."""
    highest = 0
    for case in cases:
        assert isinstance(case.target, Path)
        highest = max(highest, int(read_labels(case.target, read_one(case.image)).max()))
    if not highest:
        raise UserError("every label map is empty: there is nothing to segment")
    return [f"label {k}" for k in range(1, highest + 1)]


def _run_cells(study: Study) -> list[CellResult]:
    device = pick_device(study.config.device)
    results = []
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Bars(*columns, TextColumn("{task.fields[note]}"), console=Console(stderr=True)) as bars:
        whole = bars.add_task("cells", total=len(study.names), note="")
        for name in study.names:
            results.append(_run_or_read(study, name, device, bars))
            if not bars.console.is_terminal:
                history = results[-1].history
                bars.console.print(f"{name.folder}: {history.steps} steps in {history.seconds:.0f} s, tested")
            bars.advance(whole)
    return results


def _run_or_read(study: Study, name: CellName, device: torch.device, bars: Bars) -> CellResult:
    config = study.config
    chosen = shots(study.sides.pool, name.shots, name.seed)
    pretrained = study.release.state_dict if study.release and name.arm == "checkpoint" else None
    origin = study.release.info.weights_sha256 if study.release and pretrained else ""
    mark = digest(config, study.spec, chosen, study.sides.test, origin)
    folder = config.run_dir / "cells" / name.folder
    keep = config.keep_weights == "all" or name == study.best
    finished = stored(folder, mark, keep)
    if finished is not None:
        return finished
    task = bars.add_task(name.folder, total=config.schedule.steps, note="")
    result = run_cell(
        config,
        study.spec,
        name,
        chosen,
        study.sides.test,
        pretrained,
        folder,
        keep,
        mark,
        device,
        Progress(lambda step, loss: bars.update(task, completed=step, note=f"loss {loss:.3f}")),
        lambda n: bars.update(task, note=f"tested {n}/{len(study.sides.test)}"),
    )
    bars.remove_task(task)
    return result


def _tell(results: Results) -> None:
    console = Console(stderr=True, highlight=False)
    for row in results.table:
        value = row.metrics[results.headline]
        interval = "" if value.low is None else f"  [{value.low:.3f}, {value.high:.3f}]"
        number = "undefined" if value.value is None else f"{value.value:.3f}"
        console.print(f"{row.arm:>10}  {row.shots!s:>4} shots  {results.headline} {number}{interval}")
    for warning in results.warnings:
        console.print(f"note: {warning}", soft_wrap=True)
