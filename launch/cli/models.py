"""`scanfoundry models ...`: options in, lines out."""

import json
import logging
from pathlib import Path

from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn
from rich.table import Table

from scanfoundry.backbones import models_folder
from scanfoundry.configs.console import Console
from scanfoundry.configs.errors import UserError
from scanfoundry.configs.text import printable
from scanfoundry.launch.zoo.catalogue import CatalogueModel, download_size, find_model, models_of_family
from scanfoundry.launch.zoo.converting import CardTexts, ExportFormat, check_same_options, convert
from scanfoundry.launch.zoo.get import InstallOptions, get
from scanfoundry.launch.zoo.origin import read_origin

logger = logging.getLogger(__name__)

COMMERCIAL = {"yes": "yes", "no": "NO", "unknown": "unknown"}


def list_command(family: str | None) -> None:
    """The catalogue as a table."""
    table = Table(box=None, pad_edge=False)
    for name in ("name", "download", "verified by", "licence", "commercial use", "installed", "what"):
        table.add_column(name, no_wrap=True)
    for entry in models_of_family(family):
        table.add_row(
            entry.name, download_size(entry), _sum(entry), entry.licence, COMMERCIAL[entry.commercial_use],
            "yes" if read_origin(models_folder() / entry.name) else "no", entry.title,
        )  # fmt: skip
    console = Console()
    console.width = max(console.width, 200)  # a cut name or licence would be worse than a wrapped line
    console.print(table)
    print(f"installed models lie in {models_folder()}; 'scanfoundry models get NAME' installs one")


def _sum(entry: CatalogueModel) -> str:
    if entry.download.sha256:
        return "sha256"
    return "part of md5" if entry.download.md5_prefix else "nothing known"


def get_command(name: str, wish: InstallOptions) -> None:
    """Install a model, with a progress bar on a terminal."""
    entry = find_model(name)
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, TimeRemainingColumn(), console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task(entry.name, total=None)
        target = get(entry, wish, lambda done, total: bar.update(task, completed=done, total=total))
    use = entry.name if wish.out is None else target
    from scanfoundry.backbones.models.description import read_info
    from scanfoundry.backbones.models.release import INFO

    info = read_info(target / INFO)
    backbone = info.backbone.model_dump_json()
    if info.head is not None and info.head.task == "segmentation" and info.head.classes and info.head.patch:
        use_now = f"\nprediction: scanfoundry predict --model {use} --input SCANS --out PREDICTIONS"
    else:
        use_now = ""
    print(f"{target}{use_now}\nfine-tuning: checkpoint={use}")
    print(f"pre-training: init: {use}, with backbone: {_spaced(backbone)}")


def _spaced(text: str) -> str:
    """JSON as people write it, which YAML takes too."""
    return json.dumps(json.loads(text))


def inspect_command(path: Path) -> None:
    """Print what is inside."""
    from scanfoundry.launch.zoo.inspecting import inspect

    for line in inspect(path):
        print(printable(line))


def export_command(
    run: Path,
    out: Path,
    *,
    to: ExportFormat,
    check: Path | None,
    push: str | None,
    private: bool,
    licence: str | None,
    intended_use: str,
    citation: str | None,
    metrics: Path | None,
    without_patients: bool,
) -> None:
    """Write a release folder, and push it where that is asked for; or ONNX, or a MONAI bundle."""
    check_same_options(
        to,
        {
            "check": check, "push": push, "private": private, "licence": licence, "intended-use": intended_use,
            "citation": citation, "metrics": metrics, "without-patients": without_patients,
        },
    )  # fmt: skip
    if to != "release":
        print(convert(run, out, to, check, CardTexts(licence or "", intended_use, citation or "")))
        return
    from scanfoundry.launch.zoo.exporting import ReleaseTerms, check_terms, export, exported_before

    if push is not None and push.count("/") != 1:
        raise UserError(f"--push takes USER/NAME, not '{push}'")
    if private and push is None:
        raise UserError("--private says how to push: give --push USER/NAME too")
    terms = ReleaseTerms(licence, intended_use, citation, metrics, not without_patients)
    before = exported_before(out) if push is not None and terms == ReleaseTerms() else None
    exported = before or export(run, out, terms, push)
    if before:
        logger.info("%s was exported before: it is pushed as it is", out)
    print(f"{exported.folder}: {', '.join(sorted(path.name for path in exported.folder.iterdir()))}")
    if not exported.licence:
        logger.warning("it has no licence yet: README.md says so (--licence)")
    if push is not None:
        from scanfoundry.launch.zoo.pushing import push as upload

        check_terms(exported)
        print(upload(exported.folder, push, private))
