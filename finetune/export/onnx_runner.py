"""Run the exported model on one scan: python run.py SCAN [SCAN of the next channel ...] OUT

SCAN and OUT are NIfTI files; for a class or a value, OUT is a JSON file. Needs numpy, scipy, nibabel and onnxruntime.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import onnxruntime as ort

from scanfoundry.finetune.export.standalone import label_map, millimetres, prepare, probabilities, value, whole_logits


def run(scans: list[Path], out: Path, folder: Path) -> None:
    """Predict one case with the model in `folder`; OUT must not exist."""
    if out.exists():
        raise SystemExit(f"{out} exists already")
    about = json.loads((folder / "model.json").read_text(encoding="utf-8"))
    session = ort.InferenceSession(str(folder / "model.onnx"), providers=ort.get_available_providers())
    files: list[Any] = [nib.load(path) for path in scans]
    arrays = [_dhw(np.asarray(file.dataobj, np.float32)) for file in files]
    axes = files[0].affine[:3, :3] * millimetres(files[0].header["xyzt_units"])
    x, y, z = np.linalg.norm(axes, axis=0)
    image, fill = prepare(arrays, (z, y, x), about)

    def network(window: np.ndarray) -> np.ndarray:
        return session.run(None, {"image": window})[0]

    if about["prediction"] == "label_map":
        volume = abs(float(np.linalg.det(axes)))
        labels = label_map(whole_logits(network, image, fill, about), arrays[0].shape[1:], (z, y, x), about, volume)
        made = nib.Nifti1Image(labels.T.reshape(files[0].shape), files[0].affine)
        made.header["xyzt_units"] = int(files[0].header["xyzt_units"]) & 7  # of space
        nib.save(made, out)
    elif about["prediction"] in ("probabilities", "value"):
        whole = probabilities if about["prediction"] == "probabilities" else value
        found = whole(network, image, fill, about)
        out.write_text(json.dumps(dict(zip(about["classes"], found.tolist(), strict=True)), indent=2) + "\n")
    else:
        raise SystemExit(f"{about['task']}: read model.json for what is made of the outputs")


def _dhw(array: np.ndarray) -> np.ndarray:
    """(x, y), (x, y, z) -> (1, D, H, W)."""
    array = array.reshape(*array.shape, *[1] * (3 - array.ndim))
    return array.T[None]


if __name__ == "__main__":
    if len(sys.argv) < 3:
        raise SystemExit(__doc__)
    run([Path(name) for name in sys.argv[1:-1]], Path(sys.argv[-1]), Path(__file__).parent)
