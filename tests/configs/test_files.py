import json
import os

import pytest

from scanfoundry.configs.files import write_json, write_text, write_whole


def test_the_old_stays_where_writing_fails_and_nothing_else_is_left(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, {"a": 1})
    with pytest.raises(ValueError, match="JSON"):
        write_json(path, {"a": float("nan")})

    def half(part):
        part.write_text("half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_whole(path, half)
    assert json.loads(path.read_text()) == {"a": 1}
    assert os.listdir(tmp_path) == ["a.json"]


def test_text_is_replaced(tmp_path):
    for text in ("old and long", "neu: \u00e4"):
        write_text(tmp_path / "t", text)
        assert (tmp_path / "t").read_text(encoding="utf-8") == text
