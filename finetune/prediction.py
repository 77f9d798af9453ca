"""`predict`: a fine-tuned model on new scans; output in the geometry of the input."""

import csv
import json
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt
from PIL import Image

from scanforge.configs.errors import UserError
from scanforge.datasets.readers import find_scans, suffix_of
from scanforge.finetune.cases import stem_of
from scanforge.finetune.modelfile import load_model, pick_device
from scanforge.finetune.storage import write_whole
from scanforge.finetune.volumes import read_one

NIFTI = (".nii", ".nii.gz")


def predict(model: Path, inputs: Sequence[Path], out: Path, device: str = "auto") -> list[Path]:
    """Predict every scan under `inputs` (files or folders) with the model of a fine-tuning run; gives what it wrote.

    Segmentation: a label map for each scan, NIfTI with the same shape and affine (uint8) or PNG. Classification:
    predictions.csv. Detection: predictions.json, boxes half-open in voxels, order d, h, w.
    Raises UserError for an unusable model or input; scans before it are already written.
    """
    adapter, network = load_model(Path(model))
    scans = find_scans([Path(path) for path in inputs])
    if not scans:
        raise UserError(f"no readable scan (NIfTI, PNG, JPEG) under {', '.join(map(str, inputs))}")
    targets = _targets(scans, out)
    place = pick_device(device)
    network.to(place)
    out.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []
    written: list[Path] = []
    for (root, relative), target in zip(scans, targets, strict=True):
        sample = adapter.unlabelled(read_one(root / relative))
        boxes = adapter.spec.task.name == "detection"
        prediction = adapter.predict([network] if boxes else network, sample, place)
        if adapter.spec.task.name == "segmentation":
            target.parent.mkdir(parents=True, exist_ok=True)
            write_labels(prediction, root / relative, target)
            written.append(target)
        elif adapter.spec.task.name == "classification":
            named = dict(zip(adapter.spec.classes, (float(p) for p in prediction), strict=True))
            rows.append({"file": relative, "prediction": max(named, key=lambda name: named[name])} | named)
        else:
            found = [
                {"box": b.tolist(), "score": float(s), "class": adapter.spec.classes[k]}
                for b, s, k in zip(*prediction, strict=True)
            ]
            rows.append({"file": relative, "boxes": found})
    return written or [_write_rows(rows, out)]


def write_labels(labels: npt.NDArray[np.uint8], source: Path, target: Path) -> None:
    """A label map (D, H, W) beside its scan's geometry: NIfTI for NIfTI, PNG for images."""
    if suffix_of(source) in NIFTI:
        original: Any = nib.load(source)
        voxels = labels.T.reshape(original.shape)
        image = nib.Nifti1Image(voxels, original.affine)
        image.header.set_xyzt_units(*original.header.get_xyzt_units())
        for name, form in (("qform_code", image.set_qform), ("sform_code", image.set_sform)):
            code = int(original.header[name])
            form(original.affine if code else None, code=code)
        part = target.with_name(f".part-{target.name}")
        nib.save(image, part)
        part.replace(target)
    else:
        write_whole(target, lambda part: Image.fromarray(labels[0]).save(part, format="PNG"))


def _targets(scans: Sequence[tuple[Path, str]], out: Path) -> list[Path]:
    """Where each label map goes: the input's own relative path under `out`; UserError where two meet."""
    targets = []
    for _, relative in scans:
        suffix = ".nii.gz" if suffix_of(relative) in NIFTI else ".png"
        targets.append(out / PurePosixPath(relative).parent / (stem_of(relative) + suffix))
    doubled = {target for target in targets if targets.count(target) > 1}
    if doubled:
        raise UserError(f"two inputs would be written to {sorted(doubled)[0]}: give them to separate calls")
    inputs = {(root / relative).resolve() for root, relative in scans}
    clash = [target for target in targets if target.resolve() in inputs]
    if clash:
        raise UserError(f"the prediction would overwrite its input {clash[0]}: choose another --out")
    return targets


def _write_rows(rows: list[dict[str, Any]], out: Path) -> Path:
    if "boxes" in rows[0]:
        target = out / "predictions.json"
        write_whole(target, lambda part: part.write_text(json.dumps(rows, indent=2) + "\n"))
        return target
    target = out / "predictions.csv"

    def write(part: Path) -> None:
        with part.open("w", newline="", encoding="utf-8") as stream:
            writer = csv.DictWriter(stream, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)

    write_whole(target, write)
    return target
