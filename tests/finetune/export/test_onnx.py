"""ONNX: torch's numbers in onnxruntime, for every backbone and task, at any batch; and run where scanfoundry is not."""

import json
from importlib.util import find_spec

import nibabel as nib
import numpy as np
import onnxruntime
import pytest
import torch

from scanfoundry.configs.errors import UserError
from scanfoundry.finetune.export import onnx as exporting
from scanfoundry.finetune.export.network import INPUT, traceable
from scanfoundry.finetune.export.onnx import BOUND, compare, export_onnx, write_onnx
from scanfoundry.finetune.predict.prediction import predict

FLAT, DEEP = (1, 32, 32), (16, 32, 32)
BACKBONES = ("stunet", "mednext", "resenc", "vit", "primus")
EVERY = [  # each backbone in 3D and in 2D, and each head on maps and on tokens
    *((backbone, "segmentation", DEEP) for backbone in BACKBONES),
    *((backbone, "classification", FLAT) for backbone in BACKBONES),
    ("resenc", "regression", FLAT),
    ("resenc", "detection", DEEP),
    ("vit", "detection", FLAT),
]
QUICK = {("stunet", "classification", FLAT), ("vit", "classification", FLAT), ("resenc", "regression", FLAT)}


@pytest.mark.parametrize(
    ("backbone", "task", "patch"), [pytest.param(*c, marks=[] if c in QUICK else [pytest.mark.slow]) for c in EVERY]
)
def test_onnxruntime_gives_torchs_numbers(spec_of, model_of, backbones, tmp_path, backbone, task, patch):
    spec = spec_of(task, patch, backbones[backbone])
    traced = traceable(model_of(spec)[1], spec)
    write_onnx(traced, tmp_path / "model.onnx")
    inputs = {str(n): torch.randn(n, *traced.example.shape[1:]) for n in (1, 3)}
    found, allowed = compare(traced, tmp_path / "model.onnx", inputs)  # raises above the bound
    assert found.keys() == inputs.keys()
    unit = spec.standard.std if spec.standard else 1.0  # of the outputs
    assert max(found.values()) < 1e-3 * unit
    assert allowed < 1e-2 * unit
    session = onnxruntime.InferenceSession(str(tmp_path / "model.onnx"))
    assert [output.name for output in session.get_outputs()] == traced.names
    assert list(session.get_inputs()[0].shape[1:]) == [1, *patch]


@pytest.mark.parametrize("task", ["segmentation", "classification", "regression"])
def test_what_is_written_runs_without_scanfoundry(make_run, scan, stranger, tmp_path, task):
    run = make_run(task)
    exported = export_onnx(run, tmp_path / "onnx", scan)
    assert set(exported.differences) == {"noise", "scan"}
    about = json.loads((tmp_path / "onnx" / "model.json").read_text())
    assert about["compared"]["on"] == exported.differences
    assert max(exported.differences.values()) <= about["compared"]["allowed"] == exported.allowed
    assert about["network"]["input"]["shape"] == ["batch", 1, *DEEP]
    assert str(tmp_path) not in json.dumps(about)

    predict(run, [scan], tmp_path / "ours")
    if task == "segmentation":
        stranger(["run.py", str(scan), str(tmp_path / "theirs.nii.gz")], tmp_path / "onnx")
        ours, theirs = nib.load(tmp_path / "ours" / "volume.nii.gz"), nib.load(tmp_path / "theirs.nii.gz")
        assert np.array_equal(ours.affine, theirs.affine)
        assert len(np.unique(ours.dataobj)) > 1
        assert (np.asarray(ours.dataobj) == np.asarray(theirs.dataobj)).mean() > 0.999
    else:
        stranger(["run.py", str(scan), str(tmp_path / "theirs.json")], tmp_path / "onnx")
        theirs = json.loads((tmp_path / "theirs.json").read_text())
        names, row = (line.split(",") for line in (tmp_path / "ours" / "predictions.csv").read_text().splitlines())
        ours = dict(zip(names, row, strict=True))
        assert list(theirs) == (["left", "right"] if task == "classification" else ["value"])
        assert list(theirs.values()) == pytest.approx([float(ours[name]) for name in theirs], abs=1e-4, rel=1e-4)


@pytest.mark.parametrize("patch", [FLAT, DEEP])
def test_the_rule_for_boxes_gives_the_boxes_of_the_detector(described, patch):
    _, model, about = described("detection", patch)
    spec = about["detection"]
    image = torch.randn(1, 1, *patch, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        expected, scores = model(image)[0][:2]
        outputs = [o.numpy() for o in traceable(model, described("detection", patch)[0].spec).reference(image)]
    boxes, found = decoded(outputs, spec, patch)
    assert len(found) == len(scores) > 0
    np.testing.assert_allclose(found, scores.numpy(), atol=1e-5)
    # Scores that are one within rounding have no order of their own.
    apart = np.abs(boxes[:, None] - expected.numpy()[None]).max(-1)
    apart[np.abs(found[:, None] - scores.numpy()[None]) > 1e-5] = np.inf
    assert sorted(apart.argmin(1)) == list(range(len(scores)))
    assert apart.min(1).max() < 1e-3


def decoded(outputs, spec, patch):
    """Boxes and scores by the words of the description, in plain loops."""
    n, levels = len(spec["axes"]), len(spec["levels"])
    size = np.array(patch[-n:])
    candidates = []
    for level, logits, regression in zip(spec["levels"], outputs[:levels], outputs[levels:], strict=True):
        anchors = np.array(level["anchors"])
        own = []
        for cell in np.ndindex(*level["map"]):
            for a, corners in enumerate(anchors):
                score = 1 / (1 + np.exp(-logits[0][(a, *cell)]))
                if score <= spec["score_threshold"]:
                    continue
                shift = regression[0][(slice(a * 2 * n, a * 2 * n + 2 * n), *cell)]
                stride = np.array(level["stride"])
                anchor = corners.reshape(2, n) + np.array(cell) * stride + stride // 2
                wide = anchor[1] - anchor[0]
                centre = shift[:n] * wide + anchor.mean(0)
                half = np.exp(np.minimum(shift[n:], spec["box_size_limit"])) * wide / 2
                box = np.clip(np.concatenate([centre - half, centre + half]).reshape(2, n), 0, size)
                own.append((score, box))
        best = sorted(own, key=lambda c: -c[0])[: spec["candidates_per_level"]]
        candidates += [(score, box) for score, box in best if (box[1] - box[0] >= 1).all()]
    kept = []
    for score, box in sorted(candidates, key=lambda c: -c[0]):
        if all(iou(box, other) <= spec["nms_iou"] for _, other in kept):
            kept.append((score, box))
    kept = kept[: spec["boxes_per_scan"]]
    return np.array([box.ravel() for _, box in kept]), np.array([score for score, _ in kept])


def iou(a, b):
    both = np.prod(np.clip(np.minimum(a[1], b[1]) - np.maximum(a[0], b[0]), 0, None))
    return both / (np.prod(a[1] - a[0]) + np.prod(b[1] - b[0]) - both)


def test_numbers_that_differ_are_not_written(make_run, tmp_path, monkeypatch):
    monkeypatch.setattr(exporting, "BOUND", 1e-12)
    with pytest.raises(UserError, match=r"onnxruntime differs from torch by .* nothing was written"):
        export_onnx(make_run("classification", FLAT), tmp_path / "onnx")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run"]


def test_a_number_that_is_none_is_not_allowed(spec_of, model_of, tmp_path):
    spec = spec_of("classification", FLAT)
    traced = traceable(model_of(spec)[1], spec)
    write_onnx(traced, tmp_path / "model.onnx")
    with pytest.raises(UserError, match="by nan on scan"):
        compare(traced, tmp_path / "model.onnx", {"scan": torch.full((1, 1, *FLAT), float("nan"))})


def test_mistakes_are_one_line_and_write_over_nothing(make_run, tmp_path, monkeypatch):
    run = make_run("classification", FLAT)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("mine")
    with pytest.raises(UserError, match="exists already"):
        export_onnx(run, tmp_path / "full")
    assert (tmp_path / "full" / "thesis.txt").read_text() == "mine"
    with pytest.raises(UserError, match="no fine-tuned model"):
        export_onnx(tmp_path / "full", tmp_path / "onnx")
    monkeypatch.setattr(exporting, "find_spec", lambda name: None if name == "onnxscript" else find_spec(name))
    with pytest.raises(UserError, match=r'ONNX needs onnxscript: pip install "scanfoundry\[onnx\]"'):
        export_onnx(run, tmp_path / "onnx")
    assert not (tmp_path / "onnx").exists()


def test_the_bound_is_tight(make_run):
    assert BOUND <= 1e-4
    assert INPUT == "image"
