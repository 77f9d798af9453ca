"""CSV files as spreadsheets and programs write them."""

from pathlib import Path

import pytest

from scanfoundry.configs.errors import UserError
from scanfoundry.datasets.labels.tables.rows import column_named, read_rows

WANTED = [{"id": "a", "class": "x, y"}, {"id": "b", "class": ""}]


@pytest.mark.parametrize(
    "text",
    [
        'id,class\na,"x, y"\nb,\n',
        'id, class\r\na, "x, y"\r\nb ,  \r\n',
        'id,class\ra,"x, y"\rb,\r',
        "id;class\na;x, y\nb;\n",
        "id\tclass\na\tx, y\nb\t\n",
        "id|class\na|x, y\nb|\n",
        'sep=;\nid;class\na;"x, y"\nb;\n',
        '\n\nid,class\n\n,\na,"x, y"\n , \nb,\n,,\n',
        'id,class,\na,"x, y",\nb\n',  # an empty cell at the end, or one that is missing
        '"id","class"\n"a","x, y"\n"b",""\n',
        'id,class,class\na,"x, y","x, y"\nb,,\n',
    ],
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_the_same_lines_however_they_are_written(tmp_path: Path, text: str, encoding: str) -> None:
    (tmp_path / "l.csv").write_bytes(text.encode(encoding))
    assert read_rows(tmp_path / "l.csv") == (["id", "class"], WANTED)


def test_lines_know_where_they_stand(tmp_path: Path) -> None:
    (tmp_path / "l.csv").write_text('sep=,\n\nid,note\na,"two\nlines"\nb,\n')
    assert [row.line for row in read_rows(tmp_path / "l.csv")[1]] == [5, 6]


def test_columns_of_one_name_that_differ_are_neither(tmp_path: Path) -> None:
    (tmp_path / "l.csv").write_text("id,class,class\na,x,y\n")
    assert read_rows(tmp_path / "l.csv")[0] == ["id", "class.1", "class.2"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "l.csv is empty"),
        (b"\n , \n", "l.csv is empty"),
        (b'id,class\na,"x\nb,y\n', "line 3: unexpected end of data; is a quote not closed"),
        (b'id,class\na,"x"y\n', "line 2: ',' expected after '\"'"),
        (b"id,class\na,x\nb,x,y\nc,x,,z\n", r"(?s)2 mistakes .* line 3 has more cells \(3\) .* line 4"),
        (b"id,class\na,\xe4\n", "line 2 is not UTF-8; save it as UTF-8"),
        ("id,class\na,x\n".encode("utf-16-le"), "zero bytes"),
        ("id,class\na,x\n".encode("utf-32"), "cannot read the list"),
    ],
)
def test_what_is_no_list(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "l.csv").write_bytes(content)
    with pytest.raises(UserError, match=message):
        read_rows(tmp_path / "l.csv")


def test_a_column_by_its_name() -> None:
    assert column_named(["ID", "Class"], "class") == "Class"
    assert column_named(["Class", "class"], "class") == "class"
    assert column_named(["Class", "CLASS"], "class") is None
