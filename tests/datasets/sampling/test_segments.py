"""What a run knows of the manifests that it has drawn from, and what it says of others."""

import json

import pytest

from scanfoundry.configs.errors import UserError
from scanfoundry.datasets.sampling.segments import Segment, continued, sealed, segments_of

BEGAN = {"mr": "a", "us": "b"}
GREW = {"mr": "a", "us": "c"}
EARLIER = {"us": {"b": "manifest-000000.json"}}


def test_a_seal_tells_the_segments_back() -> None:
    one = [Segment(0, BEGAN)]
    assert sealed(one) == {"manifests": BEGAN}  # as it was before there was growth
    for segments in (one, [*one, Segment(7, GREW)], [*one, Segment(7, GREW), Segment(7, {"mr": "d", "us": "c"})]):
        assert segments_of(json.loads(json.dumps({"seed": 1, **sealed(segments)}))) == segments


def test_a_segment_begins_where_scans_were_appended_on_purpose() -> None:
    one = [Segment(0, BEGAN)]
    assert continued(one, 7, BEGAN, {}, allow_grown=True) == one
    two = continued(one, 7, GREW, EARLIER, allow_grown=True)
    assert two == [*one, Segment(7, GREW)]
    assert continued(two, 9, GREW, EARLIER, allow_grown=False) == two  # it was allowed once, and is known
    again = {"us": {"b": "manifest-000000.json", "c": "manifest-000001.json"}}
    assert continued(two, 9, {"mr": "a", "us": "d"}, again, allow_grown=True)[2] == Segment(9, {"mr": "a", "us": "d"})


@pytest.mark.parametrize(
    ("known", "now", "earlier", "allowed", "said"),
    [
        ([BEGAN], GREW, EARLIER, False, r"'us' since step 9: set data\.allow_grown=true .* manifest-000000\.json"),
        ([BEGAN], {"mr": "a", "us": "x"}, {}, True, "'us' are neither those that the run was trained on nor these and"),
        ([BEGAN], {"mr": "x", "us": "c"}, EARLIER, True, "the shards of source 'mr' are neither"),
        ([BEGAN, GREW], BEGAN, {}, True, "'us' has lost the scans that were appended to it.* since step 1; restore"),
        ([GREW], {"mr": "a", "us": "b"}, {}, True, "the shards of source 'us' are neither"),
        # Grown from what it began with, but not from what it was grown to.
        ([BEGAN, GREW], {"mr": "a", "us": "x"}, EARLIER, True, "the shards of source 'us' are neither"),
    ],
)  # fmt: skip
def test_other_data_are_refused_in_one_line(known: list, now: dict, earlier: dict, allowed: bool, said: str) -> None:
    segments = [Segment(step, manifests) for step, manifests in enumerate(known)]
    with pytest.raises(UserError, match=said) as caught:
        continued(segments, 9, now, earlier, allowed)
    assert "\n" not in str(caught.value)
