"""Boxes of images as annotation tools write them: COCO (JSON) and Pascal VOC (a folder of XML)."""

from collections import Counter
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from scanfoundry.configs.errors import Mistakes, UserError
from scanfoundry.datasets.labels.tables.table import FoundLabels
from scanfoundry.datasets.readers.box_labels import why_no_voxels
from scanfoundry.datasets.readers.labels import Box, LabelRef


def is_coco(content: Any) -> bool:
    """Whether a JSON file's content is of COCO's form."""
    return isinstance(content, dict) and isinstance(content.get("images"), list) and "annotations" in content


def read_coco(path: Path, content: dict[str, Any]) -> FoundLabels:
    """Boxes (x, y, width, height) of each of the images; an image without annotation: looked, and there is none.

    Without extent, of a crowd, or of no image: left out and counted.

    Raises:
        UserError: the content is not of COCO's form, an id is of two images or categories, or boxes are no pixels.
    """
    found, mistakes = FoundLabels(), Mistakes(str(path))
    try:
        names = {each["id"]: str(each["name"]) for each in content.get("categories", [])}
        boxes: dict[Any, list[Box]] = {each["id"]: [] for each in content["images"]}
        files = {each["id"]: str(each["file_name"]) for each in content["images"]}
        for what, ids in (("categories", names), ("images", files)):
            if len(ids) < len(content.get(what, [])):
                mistakes.add(f"{path}: two of its {what} have one id")
        _check_ids(path, content, files, mistakes)
        for each in content["annotations"]:
            if each["image_id"] not in boxes:
                found.drop("boxes of no image")
            elif each.get("iscrowd"):
                found.drop("regions of a crowd")
            else:
                where = f"an annotation of '{files[each['image_id']]}'"
                x, y, width, height = _bbox(each, f"{path} is no COCO list of boxes: {where}")
                label = names.get(each.get("category_id"), f"category {each.get('category_id')}")
                if names and each.get("category_id") not in names:
                    mistakes.add(f"{path}: a box of '{files[each['image_id']]}' is of {label}, which it does not name")
                with mistakes.each():
                    where = f"{path}: a box of '{files[each['image_id']]}'"
                    _keep(boxes[each["image_id"]], x, y, x + width, y + height, label, found, where)
        for each in content["images"]:
            size = (int(each["height"]), int(each["width"])) if "height" in each and "width" in each else None
            ref = LabelRef(boxes=tuple(boxes[each["id"]]), flat_boxes=True, size=size)
            found.refs.append((str(each["file_name"]), ref))
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise UserError(f"{path} is no COCO list of boxes: {type(error).__name__} {error}") from error
    mistakes.raise_if_any()
    return found


def _check_ids(path: Path, content: dict[str, Any], files: dict[Any, str], mistakes: Mistakes) -> None:
    """Keeps files that are listed twice. UserError where no annotation is of an image."""
    for name, count in Counter(files.values()).items():
        if count > 1:
            mistakes.add(f"{path}: two of its images have the file_name '{name}'")
    given = [each["image_id"] for each in content["annotations"]]
    if given and not any(each in files for each in given):
        raise UserError(
            f"{path}: no annotation is of one of its images: 'image_id' is {given[0]!r} there, 'id' of an image "
            f"{next(iter(files), None)!r}"
        )


def _bbox(annotation: dict[str, Any], where: str) -> tuple[float, float, float, float]:
    """x, y, width, height; UserError where the annotation has no four numbers."""
    given = annotation.get("bbox")
    if given is None:
        raise UserError(f"{where} has no 'bbox': [x, y, width, height] in pixels")
    if not isinstance(given, list) or len(given) != 4 or not all(isinstance(each, int | float) for each in given):
        raise UserError(f"{where} has the 'bbox' {given}; four numbers are needed: x, y, width, height")
    x, y, width, height = map(float, given)
    return x, y, width, height


def read_voc(folder: Path) -> FoundLabels:
    """Boxes of the XML files under `folder` (or of the one file), each of the image of its own name and place.

    Pascal VOC counts pixels from 1 and includes the last, so `xmin` to `xmax` is [xmin - 1, xmax). A folder in which
    any box begins at 0 cannot mean that: there it is [xmin, xmax). A box that ends where it begins is a slip of the
    hand by either count: left out and counted.
    """
    files = [folder] if folder.is_file() else sorted(folder.rglob("*.xml"))
    mistakes, drawn = Mistakes(str(folder)), []
    for file in files:
        with mistakes.each():
            drawn.append((file, _objects(file)))
    first = 0.0 if any(min(low[:2]) < 1 for _, (_, objects) in drawn for _, low in objects) else 1.0
    found = FoundLabels()
    for file, (size, objects) in drawn:
        boxes: list[Box] = []
        for label, (x0, y0, x1, y1) in objects:
            if x0 < x1 and y0 < y1:
                with mistakes.each():
                    _keep(boxes, x0 - first, y0 - first, x1, y1, label, found, f"{file}: a box")
            else:
                found.drop("boxes without extent")
        name = file.name if file == folder else file.relative_to(folder).as_posix()
        found.refs.append((name.removesuffix(".xml"), LabelRef(boxes=tuple(boxes), flat_boxes=True, size=size)))
    if any(objects for _, (_, objects) in drawn) and not first:
        found.notes.append(f"{folder.name}: boxes that begin at 0, so pixels are counted from 0")
    mistakes.raise_if_any()
    return found


def _objects(file: Path) -> tuple[tuple[int, int] | None, list[tuple[str, tuple[float, float, float, float]]]]:
    """(H, W) and the (label, (xmin, ymin, xmax, ymax)) of one file."""
    try:
        content = file.read_bytes()
        if b"<!ENTITY" in content:
            raise UserError(f"{file}: declares entities, which no annotation needs")
        root = ElementTree.fromstring(content)
        if root.tag != "annotation":
            raise UserError(f"{file} is no Pascal VOC annotation, but '{root.tag}'")
        height, width = (int(float(root.findtext(f"size/{name}") or 0)) for name in ("height", "width"))
        objects = [
            (
                (each.findtext("name") or "").strip() or "finding",
                tuple(float(each.findtext(f"bndbox/{name}") or "") for name in ("xmin", "ymin", "xmax", "ymax")),
            )
            for each in root.iter("object")
        ]
    except (OSError, ElementTree.ParseError, ValueError, OverflowError) as error:
        raise UserError(f"{file} is no Pascal VOC annotation: {error}") from error
    return ((height, width) if height and width else None), objects  # type: ignore[return-value]


def _keep(
    boxes: list[Box], x0: float, y0: float, x1: float, y1: float, label: str, found: FoundLabels, where: str
) -> None:
    """Keeps or counts a box; UserError where it is no box of pixels."""
    if x0 < x1 and y0 < y1:
        if why := why_no_voxels(x0, y0, x1, y1):
            raise UserError(f"{where} {why}")
        boxes.append(Box((0.0, y0, x0), (1.0, y1, x1), label))
    else:
        found.drop("boxes without extent")
