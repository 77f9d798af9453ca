"""The MONAI bundle runs where scanfoundry is not, and gives the labels of `scanfoundry predict`."""

import json

import nibabel as nib
import numpy as np
import pytest
import torch
from PIL import Image

from scanfoundry.configs.errors import UserError
from scanfoundry.finetune.export.bundle import Terms, export_bundle
from scanfoundry.finetune.export.bundle_runner import Network
from scanfoundry.finetune.export.network import traceable
from scanfoundry.finetune.predict.prediction import predict

# Of the bundle specification (docs.monai.io, "metadata.json File"), and of the format of a tensor in it.
REQUIRED = {
    "version", "monai_version", "pytorch_version", "numpy_version", "required_packages_version", "task", "description",
    "authors", "copyright", "network_data_format", "changelog", "schema",
}  # fmt: skip
TENSOR = {
    "type", "format", "num_channels", "spatial_shape", "dtype", "value_range", "is_patch_data", "channel_def",
}  # fmt: skip
RUN = ["-m", "monai.bundle", "run", "--config_file", "configs/inference.json"]


def dice(a, b):
    return 2 * (a & b).sum() / (a.sum() + b.sum())


def test_volumes_get_the_labels_of_predict(make_run, scan, stranger, tmp_path):
    run = make_run("segmentation", mirror=True)
    bundle = export_bundle(run, tmp_path / "bundle", Terms("cc-by-4.0", "Research.", "Us 2026"))
    stranger([*RUN, "--dataset_dir", str(scan.parent), "--output_dir", str(tmp_path / "theirs")], bundle)
    predict(run, [scan.parent], tmp_path / "ours")
    ours, theirs = (nib.load(tmp_path / name / "volume.nii.gz") for name in ("ours", "theirs"))
    assert np.allclose(ours.affine, theirs.affine, atol=1e-5)
    assert theirs.get_data_dtype() == np.uint8
    a, b = np.asarray(ours.dataobj), np.asarray(theirs.dataobj)
    labels = np.unique(a)
    assert len(labels) > 1
    assert min(dice(a == k, b == k) for k in labels) >= 0.999
    assert str(tmp_path) not in "".join(p.read_text() for p in bundle.rglob("*") if p.suffix in (".json", ".md", ".py"))


def test_images_get_the_labels_of_predict(make_run, stranger, tmp_path):
    rng = np.random.default_rng(0)
    (tmp_path / "images").mkdir()
    Image.fromarray(rng.integers(0, 255, (40, 30), np.uint8)).save(tmp_path / "images" / "grey.png")
    Image.fromarray(rng.integers(0, 255, (32, 46, 3), np.uint8)).save(tmp_path / "images" / "colour.png")
    run = make_run("segmentation", (1, 32, 32), modality="us")
    bundle = export_bundle(run, tmp_path / "bundle")
    stranger([*RUN, "--dataset_dir", str(tmp_path / "images"), "--output_dir", str(tmp_path / "theirs")], bundle)
    predict(run, [tmp_path / "images"], tmp_path / "ours")
    for name in ("grey.png", "colour.png"):
        ours, theirs = (np.asarray(Image.open(tmp_path / folder / name)) for folder in ("ours", "theirs"))
        assert len(np.unique(ours)) > 1
        assert (ours == theirs).mean() > 0.999


@pytest.mark.parametrize(("task", "words"), [("classification", 2), ("regression", 1)])
def test_classes_and_values_get_the_numbers_of_predict(make_run, scan, stranger, tmp_path, task, words):
    run = make_run(task, mirror=True)
    bundle = export_bundle(run, tmp_path / "bundle")
    stranger([*RUN, "--dataset_dir", str(scan.parent), "--output_dir", str(tmp_path / "theirs")], bundle)
    predict(run, [scan.parent], tmp_path / "ours")
    ours, theirs = ((tmp_path / name / "predictions.csv").read_text().splitlines() for name in ("ours", "theirs"))
    assert ours[0] == theirs[0]
    first, second = ours[1].split(","), theirs[1].split(",")
    assert first[:words] == second[:words]
    assert [float(v) for v in first[words:]] == pytest.approx([float(v) for v in second[words:]], abs=1e-4, rel=1e-4)


def test_the_bundle_says_what_the_specification_asks_for(make_run, tmp_path):
    bundle = export_bundle(make_run("segmentation", modality="ct"), tmp_path / "bundle", Terms("cc-by-4.0"))
    for name in ("configs/metadata.json", "models/model.pt", "docs/README.md", "docs/license.txt"):
        assert (bundle / name).stat().st_size
    metadata = json.loads((bundle / "configs/metadata.json").read_text())
    assert metadata.keys() >= REQUIRED
    formats = metadata["network_data_format"]
    assert formats["inputs"]["image"].keys() >= TENSOR
    assert formats["outputs"]["pred"].keys() >= TENSOR
    assert formats["inputs"]["image"]["modality"] == "CT"
    assert formats["inputs"]["image"]["value_range"] == [-1, 1]
    assert formats["outputs"]["pred"]["channel_def"] == {"0": "background", "1": "left", "2": "right"}
    assert {"nibabel", "scipy", "fire"} <= metadata["required_packages_version"].keys()
    unsaid = export_bundle(tmp_path / "run", tmp_path / "unsaid")
    assert not (unsaid / "docs/license.txt").exists()
    assert "Licence: not stated" in (unsaid / "docs/README.md").read_text()


@pytest.mark.parametrize(
    "backbone", ["vit", *(pytest.param(name, marks=pytest.mark.slow) for name in ("stunet", "mednext", "primus"))]
)
def test_every_backbone_is_the_program_with_its_weights(make_run, backbones, spec_of, model_of, tmp_path, backbone):
    spec = spec_of("classification", (1, 32, 32), backbones[backbone])
    bundle = export_bundle(make_run("classification", (1, 32, 32), backbones[backbone]), tmp_path / "bundle")
    # The weights lie in the state dictionary alone.
    assert (bundle / "models/model.pt2").stat().st_size < 0.2 * (bundle / "models/model.pt").stat().st_size
    network = Network(str(bundle / "models/model.pt2"), str(bundle / "models/model.pt")).eval()
    traced = traceable(model_of(spec)[1], spec)
    for batch in (1, 3):
        image = torch.randn(batch, 1, 1, 32, 32)
        with torch.no_grad():
            assert torch.equal(network(image), traced.reference(image)[0])


def test_mistakes_are_one_line_and_write_over_nothing(make_run, tmp_path):
    with pytest.raises(UserError, match="of detection cannot be written: export it with --to onnx"):
        export_bundle(make_run("detection"), tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()
    (tmp_path / "bundle").mkdir()
    (tmp_path / "bundle" / "mine").write_text("mine")
    with pytest.raises(UserError, match="exists already"):
        export_bundle(make_run("segmentation"), tmp_path / "bundle")
    assert [p.name for p in (tmp_path / "bundle").iterdir()] == ["mine"]
