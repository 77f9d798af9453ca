"""`scanfoundry demo`: every step a user takes, with the same functions that the commands call."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scanfoundry.configs.errors import UserError
from scanfoundry.configs.loading import check, find, override, read_yaml
from scanfoundry.datasets.modality import settled

PATIENTS = 24  # per modality of the synthetic data
OURS = {"cohort", "shards", "pretrain", "finetune"}


@dataclass(frozen=True)
class DemoSource:
    """One folder of unlabelled scans that goes into the pre-training."""

    name: str
    images: Path
    modality: str


def run_demo(data: Path | None, out: Path, modality: str = "unknown") -> Path:
    """Build shards, pre-train on them, and fine-tune on a few labelled cases, against training from scratch.

    Args:
        data: a folder with imagesTr and labelsTr; None: synthetic scans are written below `out`.
        out: where everything goes; an earlier start of the demo there goes on.
        modality: of `data`.

    Returns:
        The path of the report.

    Raises:
        UserError: `out` is a folder of something else, or `data` has another layout or an unknown modality.
    """
    _check_another(out)
    sources, labelled = _given(data, modality) if data is not None else _synthetic(out)
    recipe = read_yaml(find("demo", "pretrain"))
    recipe["data"]["sources"] = [_shards(source, out) for source in sources]
    if not any(source.modality == "xr" for source in sources):
        recipe["data"]["crop_2d"] = None
    run_dir = _pretrain(recipe, out / "pretrain")
    words = [f"run_dir={out / 'finetune'}", f"checkpoint={run_dir}", *labelled]
    return _finetune(words)


def _check_another(out: Path) -> None:
    """UserError for a folder of something else, such as a home directory; an earlier start of a demo goes on."""
    if out.exists() and not out.is_dir():
        raise UserError(f"--out {out} is a file; choose a folder")
    others = sorted(path.name for path in out.iterdir() if path.name not in OURS) if out.is_dir() else []
    if others:
        raise UserError(
            f"{out} is no folder of a demo: it holds {', '.join(others[:3])}{' ...' if len(others) > 3 else ''}; "
            "choose a new or an empty folder for --out"
        )


def _synthetic(out: Path) -> tuple[list[DemoSource], list[str]]:
    from scanfoundry.launch.demo.synthetic_data import make_cohort

    cohort = out / "cohort"
    print(f"1. a procedural cohort in {cohort}")
    make_cohort(cohort, PATIENTS)
    sources = [DemoSource(m, cohort / m / "imagesTr", m) for m in ("ct", "mr")]
    sources.append(DemoSource("xray", cohort / "xray" / "images", "xr"))
    labelled = [f"data.images={cohort / 'ct' / 'imagesTr'}", f"data.labels={cohort / 'ct' / 'labelsTr'}"]
    return sources, [*labelled, "data.modality=ct", "task.classes=[liver, kidney]"]


def _given(data: Path, modality: str) -> tuple[list[DemoSource], list[str]]:
    images, labels = data / "imagesTr", data / "labelsTr"
    if not images.is_dir() or not labels.is_dir():
        raise UserError(f"{data} has no imagesTr and labelsTr; name a folder in the layout of the Decathlon or nnU-Net")
    try:
        modality = str(settled(modality))  # before the first shard is built
    except ValueError as error:
        raise UserError(f"--modality: {error}") from error
    print(f"1. scans in {images}")
    return [DemoSource("scans", images, modality)], [
        f"data.images={images}",
        f"data.labels={labels}",
        f"data.modality={modality}",
    ]


def _shards(source: DemoSource, out: Path) -> dict[str, Any]:
    from scanfoundry.datasets.shards.build import BuildOptions, build
    from scanfoundry.launch.build_summary import describe_build

    folder = out / "shards" / source.name
    summary = build([source.images], folder, BuildOptions(modality=source.modality))
    print(f"2. shards in {describe_build(summary)}")
    return {"name": source.name, "path": str(folder)}


def _pretrain(recipe: dict[str, Any], run_dir: Path) -> Path:
    from scanfoundry.pretrain import run
    from scanfoundry.pretrain.config.run import PretrainConfig

    print(f"3. pre-training in {run_dir}")
    result = run(check(PretrainConfig, override(recipe, [f"run_dir={run_dir}"]), "demo"))
    if not result.complete:
        raise KeyboardInterrupt
    return run_dir


def _finetune(words: list[str]) -> Path:
    from scanfoundry.configs.loading import load
    from scanfoundry.finetune import run
    from scanfoundry.finetune.config.study import FinetuneConfig

    print("4. fine-tuning on a few labelled cases, from the checkpoint and from scratch")
    return run(load(FinetuneConfig, "demo", "finetune", words)).report
