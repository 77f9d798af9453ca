"""Every command and snippet of README and docs runs, or says why it does not.

What is not run is a skipped test with its reason, so that pytest's summary lists and counts it. The pages begin with
what the README's own commands leave behind; `doc_blocks.py` says how much smaller the trainings are made.
"""

import shutil
from pathlib import Path
from typing import Any

import doc_blocks
import pytest
import torch
import yaml

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCKS = [block for page in PAGES for block in doc_blocks.blocks(page)]
LANGUAGES = {"", "python", "yaml", "text"}
TWO_VIEWS = {"name": "contrastive", "projector_hidden": 16}  # so that a block may say what the second view is
OUTPUTS = ("release", "bundle", "predictions")  # of the README's commands, which other pages give anew
TINY = {"name": "resenc", "features": [8, 12, 16], "blocks": [1, 1, 1], "strides": [[1, 2, 2], [1, 2, 2]]}

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("docs"), pytest.mark.timeout(900)]


def test_blocks_are_found():
    assert {block.language for block in BLOCKS} <= LANGUAGES
    fences = sum(line.startswith("```") for page in PAGES for line in page.read_text(encoding="utf-8").splitlines())
    assert fences == 2 * len(BLOCKS)


def test_a_page_is_taken_apart(tmp_path: Path):
    page = tmp_path / "page.md"
    page.write_text("a\n```\nx \\\n  y # z\n\nv\n```\n<!-- not run: why -->\n```python\nb\n```\n"
                    "<!-- given: c, of a d -->\n```python\ne\n```\n")  # fmt: skip
    first, second, third = doc_blocks.blocks(page)
    assert doc_blocks.commands(first.text) == ["x    y # z", "v"]
    assert (second.language, second.reason, second.line) == ("python", "why", 9)
    assert (third.given, third.reason) == ("c, of a d", "")


@pytest.mark.parametrize("block", [each for each in BLOCKS if each.reason], ids=lambda each: each.place)
def test_what_is_not_run_says_why(block: Any):
    assert len(block.reason.split()) > 2
    pytest.skip(f"not run: {block.reason}")


@pytest.fixture
def place(readme_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of what the README's commands left, as the working directory."""
    shutil.copytree(readme_folder, tmp_path / "place", ignore=shutil.ignore_patterns(*OUTPUTS))
    monkeypatch.chdir(tmp_path / "place")
    monkeypatch.setenv("SCANFOUNDRY_KEY_FILE", str(readme_folder / "site.key"))
    monkeypatch.setenv("SCANFOUNDRY_MODELS", str(readme_folder / "models"))
    return tmp_path / "place"


def test_readme_runs(readme_folder: Path):
    for left in ("shards/mr/manifest.json", "shards/mr/contact_sheet.png", "runs/study/report.html",
                 "predictions/scan.nii.gz", "release/README.md", "bundle/models/model.pt2"):  # fmt: skip
        assert (readme_folder / left).is_file(), left


@pytest.mark.parametrize("page", [page for page in PAGES if page.name != "README.md"], ids=lambda page: page.name)
def test_page_runs(page: Path, place: Path):
    for block in doc_blocks.blocks(page):
        if block.reason or block.given or block.language == "text":
            continue
        if block.language == "yaml":
            run = yaml.safe_load((place / "my_run.yaml").read_text())
            doc_blocks.check_yaml(block.text, {**run, "objective": TWO_VIEWS})
        elif block.language == "python":
            doc_blocks.run_python(block, {})
        else:
            doc_blocks.run_shell(block.text)


def introduced(task: str, place: Path) -> dict[str, Any]:
    """What a page takes for granted of a study of one task."""
    from scanfoundry.backbones.registry import build
    from scanfoundry.finetune.config.study import FinetuneConfig
    from scanfoundry.finetune.model_file import adapter_for
    from scanfoundry.finetune.run_study import prepare

    labels = {"detection": "pictures/mask_*.png", "classification": "classes.csv"}[task]
    images = {"detection": "pictures/img_*.png", "classification": "images"}[task]
    (place / "images").mkdir(exist_ok=True)
    for path in (place / "pictures").glob("img_*.png"):
        shutil.copy(path, place / "images")
    config = FinetuneConfig.model_validate({
        "run_dir": place / "runs" / task, "task": {"name": task}, "backbone": TINY, "shots": [2],
        "data": {"images": place / images, "labels": place / labels, "modality": "us"},
        "split": {"test_fraction": 0.3}, "plan": {"patch": [1, 48, 48], "batch": 2}, "device": "cpu",
    })  # fmt: skip
    settled = prepare(config)
    cases, encoder = settled.sides.pool, build(settled.spec.backbone)
    names = {"spec": settled.spec, "cases": cases, "scan": cases[0].image.read(), "encoder": encoder}
    names["device"] = torch.device("cpu")
    if task == "classification":
        adapter = adapter_for(settled.spec)
        names |= {"adapter": adapter, "model": adapter.build(encoder).eval(), "sample": adapter.load(cases[0])}
        names |= {"image": torch.randn(1, 1, 1, 48, 48), "class_index": 1}
    return names


@pytest.mark.parametrize("block", [each for each in BLOCKS if each.given], ids=lambda each: each.place)
def test_python_runs_on_what_is_given(block: Any, place: Path):
    task = block.given.split()[-1]
    names = introduced(task, place)
    doc_blocks.run_python(block, names)
    if task == "detection":
        assert names["boxes"].shape[1] == 6
        assert len(names["boxes"]) == len(names["scores"]) == len(names["labels"])
    else:
        assert names["found"].shape == names["sample"].image.shape[1:]
        assert 0 <= names["found"].min() <= names["found"].max() <= 1
