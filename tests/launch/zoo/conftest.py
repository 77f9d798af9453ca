"""A catalogue of one small model, its file, and where it is installed."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from scanfoundry.backbones.vit import ViTConfig, ViTEncoder
from scanfoundry.launch.zoo.catalogue import CatalogueModel

ENTRY: dict[str, Any] = {
    "name": "tiny", "family": "test", "title": "a tiny ViT", "backbone": {"name": "vit", "size": "Ti"},
    "objective": "mae: nothing", "trained_on": "noise", "preprocessing": "none", "licence": "cc-by-4.0",
    "commercial_use": "yes", "citation": "Nobody 2026", "page": "https://example.org/tiny",
}  # fmt: skip


@pytest.fixture(scope="session")
def vit_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ViT-Ti under timm's names, as torch.save writes it: 22 MB."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    vit = ViTEncoder(ViTConfig(size="Ti", in_channels=3)).state_dict()
    timm = {key: value for key, value in vit.items() if not key.startswith("patch_embed")}
    timm |= {f"patch_embed.proj.{part}": vit[f"patch_embed_2d.{part}"] for part in ("weight", "bias")}
    path = tmp_path_factory.mktemp("vit") / "tiny.pth"
    torch.save({"model": timm, "epoch": 7}, path)
    return path


@pytest.fixture
def entry() -> Callable[..., CatalogueModel]:
    """`entry(urls, **download)`: the tiny model at these addresses."""

    def make(*urls: str, **download: Any) -> CatalogueModel:
        found = {"file": "tiny.pth", "urls": urls or ("http://127.0.0.1:9/tiny.pth",), "evidence": "the test"}
        return CatalogueModel.model_validate(ENTRY | {"download": found | download})

    return make


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The models folder of the test."""
    folder = tmp_path / "models"
    monkeypatch.setenv("SCANFOUNDRY_MODELS", str(folder))
    monkeypatch.delenv("SCANFOUNDRY_MIRROR", raising=False)
    return folder


_RUN = """
import sys
from pathlib import Path
import scanfoundry.launch.zoo.catalogue as catalogue
real = catalogue.catalogue
catalogue.catalogue = lambda path=None: real(Path(sys.argv[1]))
from scanfoundry.launch.cli.main import main
main(sys.argv[2:])
"""


@pytest.fixture
def command(tmp_path: Path, models: Path) -> Callable[..., list[str]]:
    """The words of a process that runs the command line with a catalogue of these entries."""

    def words(entry: CatalogueModel, *arguments: str | Path) -> list[str]:
        path = tmp_path / "catalogue.yaml"
        path.write_text('{"models": [' + entry.model_dump_json() + "]}")
        return [sys.executable, "-c", _RUN, str(path), *map(str, arguments)]

    return words
