"""The folders of the DICOM reader import downwards only."""

import ast
from pathlib import Path

ORDER = ["headers", "pixels", "series", "conversion", "images", "volumes", "grouping"]
FOLDER = Path(__file__).resolve().parents[4] / "datasets" / "readers" / "dicom"
PREFIX = "scanfoundry.datasets.readers.dicom."


def test_folders_import_downwards_only() -> None:
    files = [path for path in FOLDER.rglob("*.py") if path != FOLDER / "__init__.py"]
    places = {path: path.relative_to(FOLDER).parts[0].removesuffix(".py") for path in files}
    assert set(places.values()) == set(ORDER)
    for path, here in places.items():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(PREFIX):
                there = str(node.module).removeprefix(PREFIX).split(".")[0]
                assert ORDER.index(there) <= ORDER.index(here), f"{path} imports {node.module}, which lies above it"
