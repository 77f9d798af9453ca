"""ONNX: the network, its preprocessing as JSON and as a script, and how far it is from torch.

The exporter is torch.onnx with dynamo=True (torch.export, then onnxscript). The older one, by TorchScript, is
deprecated and refuses Primus (its table of angles) and a ResEnc of slices (averages over partial windows); this one
takes every backbone and task at any batch.
"""

import json
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from scanfoundry.configs.errors import UserError
from scanfoundry.finetune.cases.volumes import read_one
from scanfoundry.finetune.export import standalone
from scanfoundry.finetune.export.describe import describe
from scanfoundry.finetune.export.folder import new_folder
from scanfoundry.finetune.export.inlining import source_without_scanfoundry
from scanfoundry.finetune.export.network import INPUT, Traceable, differences, single_model, traceable
from scanfoundry.finetune.sample import centred
from scanfoundry.finetune.task import Adapter

MODEL, ABOUT, SCRIPT, RUNNER = "model.onnx", "model.json", "preprocessing.py", "run.py"
PACKAGES = ("onnx", "onnxscript", "onnxruntime")
BOUND = 1e-4  # the largest difference from torch that is written, as a share of the largest output (1 at least)


@dataclass(frozen=True)
class OnnxExport:
    """What was written, and the largest absolute difference between onnxruntime and torch on each input."""

    folder: Path
    differences: dict[str, float]
    allowed: float


def export_onnx(run: Path, out: Path, scan: Path | None = None) -> OnnxExport:
    """Write the model of a fine-tuning run as ONNX into a new folder, once onnxruntime gives torch's numbers.

    They are compared on noise, and on a patch of `scan` where one is given. UserError where a package is missing, the
    run is no fine-tuned model, `out` holds something, or the numbers differ by more than BOUND.
    """
    missing = [name for name in PACKAGES if find_spec(name) is None]
    if missing:
        raise UserError(f'ONNX needs {", ".join(missing)}: pip install "scanfoundry[onnx]"')
    from scanfoundry.finetune.export import onnx_runner  # which imports onnxruntime

    adapter, model = single_model(run)
    traced = traceable(model, adapter.spec)
    inputs = {"noise": torch.randn(3, *traced.example.shape[1:], generator=torch.Generator().manual_seed(1))}
    if scan is not None:
        inputs["scan"] = patch_of(adapter, scan)
    with new_folder(out) as part:
        write_onnx(traced, part / MODEL)
        found, allowed = compare(traced, part / MODEL, inputs)
        about = describe(adapter, model, traced, MODEL)
        about["compared"] = {
            "what": "largest absolute difference of any output, onnxruntime (CPU, float32) against torch",
            "on": found,
            "allowed": allowed,
        }
        (part / ABOUT).write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
        (part / SCRIPT).write_text(source_without_scanfoundry(standalone), encoding="utf-8")
        runner = source_without_scanfoundry(onnx_runner, {standalone.__name__: "preprocessing"})
        (part / RUNNER).write_text(runner, encoding="utf-8")
    return OnnxExport(out, found, allowed)


def patch_of(adapter: Adapter[Any, Any], scan: Path) -> Tensor:
    """What the network sees of a scan first: (1, C, *patch), its middle where it is larger."""
    return centred(adapter.unlabelled(read_one(scan)), adapter.spec.plan)


def write_onnx(traced: Traceable, path: Path) -> None:
    """Trace and write; weights above 2 GB, which one file cannot hold, go beside it."""
    size = sum(value.numel() * value.element_size() for value in traced.network.state_dict().values())
    with _quiet():
        torch.onnx.export(
            traced.network, (traced.example,), path, input_names=[INPUT], output_names=traced.names,
            dynamic_shapes=({0: torch.export.Dim("batch")},), dynamo=True, external_data=size > 1 << 30, verbose=False,
        )  # fmt: skip


def compare(traced: Traceable, path: Path, inputs: dict[str, Tensor]) -> tuple[dict[str, float], float]:
    """The differences by input, and the largest allowed; UserError where one is above it, or no number."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    found, largest = {}, 1.0
    for name, image in inputs.items():
        reference = traced.reference(image)
        outputs = session.run(traced.names, {INPUT: image.numpy()})
        found[name] = differences(reference, [torch.from_numpy(output) for output in outputs])
        largest = max(largest, *(float(part.abs().max()) for part in reference))
    allowed = BOUND * largest
    for name, value in found.items():
        if not value <= allowed:
            raise UserError(
                f"onnxruntime differs from torch by {value:.2g} on {name}, {allowed:.2g} is allowed: nothing was "
                "written; install the versions that scanfoundry[onnx] names"
            )
    return found, allowed


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporter's advice to its developers."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    finally:
        logger.setLevel(level)
