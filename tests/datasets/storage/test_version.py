"""A file without a known checksum: two states of it are never joined."""

import io

import pytest

from scanfoundry.datasets.storage.address import Unavailable
from scanfoundry.datasets.storage.fetch import Fetch
from scanfoundry.datasets.storage.web import Version

MB = 1 << 20


def fetch(url, version, have=b"", **options):
    stream = io.BytesIO(have)
    digest = Fetch(url, 1.0, 3, version=version, **options).copied(stream)
    return stream.getvalue(), digest


def ranges(server):
    return [headers.get("Range") for _, _, headers in server.seen]


def test_a_cut_file_is_continued_where_the_server_vouches_for_it(server, faults, random_file):
    file = random_file(0, 3 * MB)
    server.files["a"], server.etags["a"], server.faults["a"] = file.content, '"one"', [faults.cut(2 * MB)]
    version = Version()
    assert fetch(server.url("a"), version) == (file.content, file.sha256)
    assert (version.validator, version.size) == ('"one"', file.size)
    assert server.sent["a"] == file.size
    assert server.seen[1][2]["If-Range"] == '"one"'


def test_it_is_begun_again_where_nobody_vouches(server, faults, random_file):
    file = random_file(0, 3 * MB)
    server.files["a"], server.faults["a"] = file.content, [faults.cut(2 * MB)]
    assert fetch(server.url("a"), Version())[0] == file.content
    assert ranges(server) == [None, None]
    server.faults["a"] = [faults.cut(2 * MB)]
    assert fetch(server.url("a"), Version(strict=False))[0] == file.content  # a checksum will tell
    assert ranges(server)[2:] == [None, f"bytes={2 * MB}-"]


@pytest.mark.parametrize("obeys", [True, False], ids=["if-range-obeyed", "if-range-ignored"])
@pytest.mark.parametrize("size", [3 * MB, 5 * MB, MB], ids=["equal", "longer", "shorter"])
def test_a_file_that_changes_in_the_middle_is_one_or_the_other(server, faults, random_file, obeys, size):
    old, new = random_file(0, 3 * MB), random_file(1, size)
    server.files["a"], server.etags["a"] = old.content, '"old"'

    def changes(handler, content):
        faults.cut(2 * MB)(handler, content)
        server.files["a"], server.etags["a"] = new.content, '"new"'
        return True

    def ignores(handler, content):
        handler.headers.replace_header("If-Range", '"new"')  # as if it had not been sent
        return False

    server.faults["a"] = [changes] if obeys else [changes, ignores]
    version = Version()
    assert fetch(server.url("a"), version) == (new.content, new.sha256)
    assert version.validator == '"new"'
    assert version.size == size


def test_a_limit_where_no_size_is_known(server, random_file):
    server.files["a"] = random_file(0, 3 * MB).content
    with pytest.raises(Unavailable, match=f"larger than the {MB} bytes"):
        fetch(server.url("a"), None, limit=MB)


def test_what_is_told_can_end_it(server, random_file):
    server.files["a"] = random_file(0, 3 * MB).content
    heard = []

    def told(position):
        heard.append(position)
        if position > MB:
            raise KeyError("enough")

    with pytest.raises(KeyError):
        fetch(server.url("a"), None, progress=told)
    assert heard == sorted(heard)
    assert MB < heard[-1] < 2 * MB
