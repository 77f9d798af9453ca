"""A file that is replaced while it is looked at: never the checksum of one and the content of the other."""

import os
from pathlib import Path

import pytest

from scanfoundry.configs.errors import UserError
from scanfoundry.configs.files import opened_once


def test_the_path_stays_the_file_s_own(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"first")
    (tmp_path / "b").write_bytes(b"other")
    with opened_once(tmp_path / "a") as (stream, same):
        os.replace(tmp_path / "b", tmp_path / "a")
        assert same.read_bytes() == stream.read() == b"first"
    assert (tmp_path / "a").read_bytes() == b"other"


def test_a_file_that_is_written_to_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"first")
    os.utime(path, ns=(0, 0))
    with pytest.raises(UserError, match="a was written to while it was read"), opened_once(path):
        path.write_bytes(b"other")
