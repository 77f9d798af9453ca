"""The parts of the bundle that MONAI has not: its network, its windows, its preprocessing, and the loop over scans."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from monai.inferers import Inferer
from monai.transforms import MapTransform, SaveImage
from torch import Tensor, nn

from scanfoundry.finetune.export.standalone import label_map, millimetres, prepare, probabilities, value, whole_logits

SUFFIXES = (".nii.gz", ".nii", ".png", ".jpg", ".jpeg")


def cases(folder: str, channels: int) -> list[dict[str, Any]]:
    """The scans under a folder; of a model of several channels NAME_0000, NAME_0001 ... belong together."""
    files = sorted(path for path in Path(folder).rglob("*") if path.name.lower().endswith(SUFFIXES))
    if channels == 1:
        found = [[str(path)] for path in files]
    else:
        parts = [(path, *_first_channel(path)) for path in files]
        found = [[str(path.with_name(f"{n}_{i:04d}{s}")) for i in range(channels)] for path, n, s in parts if n]
        rest = {str(path) for path in files} - {name for group in found for name in group}
        if found and rest:
            raise ValueError(f"{min(rest)} is of no case of {channels} channels: NAME_0000 to NAME_{channels - 1:04d}")
    missing = [name for group in found for name in group if not Path(name).is_file()]
    if missing or not found:
        raise ValueError(f"no scan in {folder}" if not found else f"{missing[0]} is missing")
    return [{"image": group[0] if channels == 1 else group} for group in found]


def _first_channel(path: Path) -> tuple[str, str]:
    """The case of 'NAME_0000.nii.gz' and its suffix; '' where it is no first channel."""
    suffix = next(suffix for suffix in SUFFIXES if path.name.lower().endswith(suffix))
    stem = path.name[: -len(suffix)]
    return stem.removesuffix("_0000") if stem.endswith("_0000") else "", path.name[-len(suffix) :]


class Network(nn.Module):
    """The exported program with the weights of the state dictionary; always in evaluation mode."""

    def __init__(self, program: str, weights: str) -> None:
        super().__init__()
        self.program = torch.export.load(program).module()
        self.program.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True), assign=True)

    def train(self, mode: bool = True) -> Network:
        """Nothing: the program was traced in evaluation mode."""
        return self

    def forward(self, image: Tensor) -> Any:
        """(B, C, D, H, W) -> logits."""
        return self.program(image)


class Prepared(MapTransform):
    """The scan as MONAI loads it, (C, x, y[, z]), to the network's image (C, d, h, w), with what undoes it."""

    def __init__(self, keys: Any, about: Mapping[str, Any]) -> None:
        super().__init__(keys)
        self.about = dict(about)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Adds 'fill', the value outside the scan, and 'source', an empty image with the file's shape and affine."""
        item = dict(data)
        for key in self.key_iterator(item):
            source = item[key]
            unit = millimetres(source.meta.get("xyzt_units", 0))
            source.affine = source.affine * torch.tensor([unit, unit, unit, 1.0], dtype=source.affine.dtype)[:, None]
            array = source.numpy()
            array = array.reshape(*array.shape, *[1] * (4 - array.ndim)).transpose(0, 3, 2, 1)
            channels = [array] if len(self.about["channels"]) == 1 else [part[None] for part in array]
            pixdim: list[float] = list(source.pixdim) if str(_name(source)).endswith((".nii", ".nii.gz")) else []
            x, y, z = (float(step) for step in [*pixdim, *[1.0] * (3 - len(pixdim))])
            image, item["fill"] = prepare(channels, (z, y, x), self.about)
            item["source"], item["spacing"] = source[:1], (z, y, x)
            item[key] = torch.from_numpy(np.ascontiguousarray(image))
        return item


class Windows(Inferer):
    """Logits of the whole scan for a segmentation; probabilities of classes; a value."""

    def __init__(self, about: Mapping[str, Any]) -> None:
        super().__init__()
        self.about = dict(about)

    def __call__(
        self, inputs: Tensor, network: Callable[..., Any], *args: Any, fill: float = 0.0, **kwargs: Any
    ) -> Tensor:
        """(1, C, d, h, w) -> (1, K, d, h, w), or (1, K), or (1, 1)."""
        device = inputs.device

        def run(window: np.ndarray) -> np.ndarray:
            with torch.no_grad():
                return network(torch.from_numpy(window).to(device), *args, **kwargs).float().cpu().numpy()

        image = inputs[0].cpu().numpy()
        made = {"label_map": whole_logits, "probabilities": probabilities, "value": value}
        whole = made[self.about["prediction"]]
        return torch.from_numpy(whole(run, image, fill, self.about))[None]


class ToLabelMap(MapTransform):
    """Logits at the network's grid to the label map of the file: (1, x, y[, z]) with its affine."""

    def __init__(self, keys: Any, about: Mapping[str, Any]) -> None:
        super().__init__(keys)
        self.about = dict(about)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Reads 'source' and 'spacing'."""
        item = dict(data)
        source = item["source"]
        size = (*source.shape[1:], *[1] * (4 - source.ndim))
        for key in self.key_iterator(item):
            placed = str(_name(source)).endswith((".nii", ".nii.gz"))
            volume = abs(float(np.linalg.det(np.asarray(source.affine)[:3, :3]))) if placed else None
            labels = label_map(item[key].numpy(), size[::-1], item["spacing"], self.about, volume)
            labels = labels if labels.dtype == np.uint8 else labels.astype(np.int32)  # torch hardly knows uint16
            item[key] = MetaTensor(torch.from_numpy(labels.T.reshape(source.shape).copy()), meta=source.meta)
        return item


class SaveOutputs(MapTransform):
    """A label map into `folder` under the scan's relative path: NIfTI, or PNG for an image."""

    def __init__(self, keys: Any, folder: str, root: str) -> None:
        super().__init__(keys)
        self.folder, self.root = Path(folder), Path(root)
        if self.folder.resolve() == self.root.resolve():
            raise ValueError("the predictions would be written over the scans: give another output_dir")

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Writes, and changes nothing."""
        for key in self.key_iterator(dict(data)):
            kind = ".nii.gz" if str(_name(data[key])).endswith((".nii", ".nii.gz")) else ".png"
            wide = np.int32 if kind == ".nii.gz" else np.uint16
            dtype = np.uint8 if data[key].dtype == torch.uint8 else wide
            save = SaveImage(
                self.folder, "", kind, dtype, resample=False, separate_folder=False, data_root_dir=str(self.root),
                print_log=False, savepath_in_metadict=False,
            )  # fmt: skip
            save(data[key])
        return dict(data)


class Evaluator:
    """Every scan through preprocessing, network and postprocessing; classes and values go into predictions.csv."""

    def __init__(
        self, dataset: Sequence[Mapping[Hashable, Any]], network: nn.Module, inferer: Inferer,
        postprocessing: Callable[[Any], Any] | None, device: torch.device, classes: Sequence[str], output_dir: str,
    ) -> None:  # fmt: skip
        self.dataset, self.network, self.inferer, self.postprocessing = dataset, network, inferer, postprocessing
        self.device, self.classes, self.output_dir = device, list(classes), Path(output_dir)

    def run(self) -> None:
        """Predict all of them."""
        rows = []
        for number in range(len(self.dataset)):
            item = dict(self.dataset[number])
            with torch.inference_mode():
                image = item["image"][None].to(self.device)
                item["pred"] = self.inferer(image, self.network, fill=item["fill"])[0]
            if self.postprocessing is not None:
                self.postprocessing(item)
            else:
                rows.append({"file": Path(_name(item["source"])).name} | self._named(item["pred"].tolist()))
        if rows:
            self._write(rows)
        print(json.dumps({"scans": len(self.dataset)}))

    def _named(self, values: Iterable[float]) -> dict[str, Any]:
        named = dict(zip(self.classes, values, strict=True))
        if len(named) == 1:
            return named
        return {"prediction": max(named, key=lambda name: named[name])} | named

    def _write(self, rows: Sequence[Mapping[str, Any]]) -> None:
        self.output_dir.mkdir(parents=True, exist_ok=True)
        with (self.output_dir / "predictions.csv").open("x", newline="") as stream:
            writer = csv.writer(stream)
            writer.writerow([_cell(name) for name in rows[0]])
            writer.writerows([_cell(value) for value in row.values()] for row in rows)


def _cell(value: Any) -> Any:
    """A text that a spreadsheet takes for a formula gets an apostrophe before it; control characters are escaped."""
    if not isinstance(value, str):
        return value
    text = "".join(each if each.isprintable() else ascii(each)[1:-1] for each in value)
    formula = value.lstrip()[:1] in tuple("=+-@＝＋－＠") or value[:1] in ("\t", "\r", "\n")
    return f"'{text}" if formula else text


def _name(image: Any) -> str:
    return str(image.meta["filename_or_obj"])
