"""From a running engine to a release: the encoder's weights and the page that describes them."""

from importlib.metadata import version
from pathlib import Path

from scanforge.backbones.release import ReleaseInfo, SourceRecord, save_release
from scanforge.datasets.loader import CropLoader
from scanforge.pretrain.config import PretrainConfig
from scanforge.pretrain.engine import Engine

ENCODER = "encoder."  # every objective holds its backbone under this name


def write_release(config: PretrainConfig, engine: Engine, loader: CropLoader, step: int, saved: Path) -> Path:
    """Write `model.safetensors`, `model.json` and `patients.txt` into the run folder; `saved` is the checkpoint."""
    weights = engine.weights(saved)
    encoder = {key.removeprefix(ENCODER): value for key, value in weights.items() if key.startswith(ENCODER)}
    data = config.data
    info = ReleaseInfo(
        backbone=config.backbone,
        objective=config.objective.name,
        step=step,
        intensity=data.intensity.model_dump(mode="json"),
        crop_2d=data.crop_2d,
        crop_3d=data.crop_3d,
        sources=tuple(
            SourceRecord(name=name, manifest_sha256=digest, site=loader.sites[name])
            for name, digest in sorted(loader.manifest_hash.items())
        ),
        licence=config.licence or "",
        citation=config.citation or "",
        versions={name: version(name) for name in ("scanforge", "torch", "deepspeed", "timm")},
    )
    return save_release(config.run_dir, encoder, info, loader.patients())
