"""Boxes of a table, under the names of their columns that people and tools use."""

from pathlib import Path

import pytest

from scanfoundry.configs.errors import UserError
from scanfoundry.datasets.labels import Box
from scanfoundry.datasets.labels.tables.table import Columns, read_table

BOXES_ALONE = Columns(classes=())


def table(folder: Path, *lines: str) -> Path:
    (folder / "l.csv").write_text("\n".join(lines) + "\n")
    return folder / "l.csv"


@pytest.mark.parametrize(
    ("header", "cells"),
    [
        ("id,x0,y0,x1,y1", "a,2,3,6,11"),
        ("id, xmin, ymin, xmax, ymax", "a,2,3,6,11"),
        ("id,XMin,XMax,YMin,YMax", "a,2,6,3,11"),
        ("filename,width,height,class,xmin,ymin,xmax,ymax", "a,640,480,finding,2,3,6,11"),  # of the image
        ("id,x_min,y_min,x_max,y_max", "a,2,3,6,11"),
        ("id,x1,y1,x2,y2", "a,2,3,6,11"),
        ("id,bbox_x1,bbox_y1,bbox_x2,bbox_y2", "a,2,3,6,11"),
        ("id,left,top,right,bottom", "a,2,3,6,11"),
        ("id,xtl,ytl,xbr,ybr", "a,2,3,6,11"),
        ("id,x,y,w,h", "a,2,3,4,8"),
        ("id,x,y,width,height", "a,2,3,4,8"),
        ("id,x,y,w,h,width,height", "a,2,3,4,8,640,480"),
        ("Image,Label,Bbox [x,y,w,h],,", "a,finding,2,3,4,8,,"),  # ChestX-ray8
        ("id,cx,cy,w,h", "a,4,7,4,8"),
        ("id,x_center,y_center,width,height", "a,4,7,4,8"),
    ],
)
def test_one_box_under_many_names(tmp_path: Path, header: str, cells: str) -> None:
    ((name, ref),) = read_table(table(tmp_path, header, cells), BOXES_ALONE).refs
    assert (name, ref.boxes, ref.flat_boxes) == ("a", (Box((0, 3, 2), (1, 11, 6)),), True)


@pytest.mark.parametrize(
    ("header", "cells"),
    [
        ("id,xmin,ymin,zmin,xmax,ymax,zmax", "a,2,3,1,6,11,5"),
        ("id,x1,y1,z1,x2,y2,z2", "a,2,3,1,6,11,5"),
        ("id,x,y,z,w,h,d", "a,2,3,1,4,8,4"),
    ],
)
def test_boxes_with_depth(tmp_path: Path, header: str, cells: str) -> None:
    ((_, ref),) = read_table(table(tmp_path, header, cells)).refs
    assert (ref.boxes, ref.flat_boxes) == ((Box((1, 3, 2), (5, 11, 6)),), False)


def test_the_class_of_a_box(tmp_path: Path) -> None:
    for header in ("id,x,y,w,h,class", "id,x,y,w,h,Category", "id,x,y,w,h,label"):
        ((_, ref),) = read_table(table(tmp_path, header, "a,2,3,4,8,mass", "a,9,3,4,8,cyst"), BOXES_ALONE).refs
        assert [box.label for box in ref.boxes or ()] == ["mass", "cyst"]
    path = table(tmp_path, "id,x,y,w,h,class,class_name", "a,2,3,4,8,1,mass")
    with pytest.raises(UserError, match=r"class or class_name: set task\.label_column=class"):
        read_table(path, BOXES_ALONE)
    ((_, ref),) = read_table(path, Columns(classes=(), box_class="Class_Name")).refs
    assert [box.label for box in ref.boxes or ()] == ["mass"]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["id,bbox", "a,2 3 4 8"], "column 'bbox' holds a box in one cell"),
        (["id,class", "a,x"], "has no columns of boxes"),
        (["id,x0,y0,x1,y1,x2,y2", "a,1,2,3,4,5,6"], "may be read as x0, x1, y0, y1 or as x1, x2, y1, y2"),
        (["id,x0,y0,x1,y1", "a,0.1,0.2,0.5,0.75"], r"box of 'a' \(line 2\) lies within the first voxel"),
        (["id,x,y,w,h", "a,0,0,1,1"], "no fractions of the image"),
        (["id,x0,y0,x1,y1", "a,50,60,20,30", "b,5,6,20,30"], r"1 of 2 boxes end .* are x1 and y1 a width"),
        (["id,x0,y0,x1,y1", "a,1,2,,4", "b,1,2,b,4"], r"(?s)2 mistakes .*'a' \(line 2\).*'b' \(line 3\)"),
    ],
)
def test_boxes_that_nobody_can_mean(tmp_path: Path, lines: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        read_table(table(tmp_path, *lines), BOXES_ALONE)


def test_a_slip_of_the_hand_is_counted(tmp_path: Path) -> None:
    lines = [f"a,{n},2,{n + 5},9" for n in range(10)]
    found = read_table(table(tmp_path, "id,x0,y0,x1,y1", *lines, "a,9,2,3,9", "a,3,3,3,9"), BOXES_ALONE)
    assert (len(found.refs[0][1].boxes or ()), found.left_out) == (10, {"boxes without extent": 2})
