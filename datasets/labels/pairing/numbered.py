"""Names that end with a number of four digits: nnU-Net's channels of one case (x_0000, x_0001), or scans in a row."""

import re
from collections import Counter
from collections.abc import Iterable

MOST_CHANNELS = 10
FIRST_CHANNEL = "_0000"  # the end of the name of a case's first channel
_NUMBERED = re.compile(r"(?P<case>.+)_(?P<number>\d{4})")


def numbered(stem: str) -> tuple[str, int] | None:
    """The case and the number in a name.

    Args:
        stem: a file name without its suffix, 'x_0001'.

    Returns:
        ('x', 1); None for a name that does not end with '_' and four digits.
    """
    match = _NUMBERED.fullmatch(stem)
    return (match["case"], int(match["number"])) if match else None


def channel_name(case: str, number: int) -> str:
    """The name of channel `number` of a case: 'x_0001' of channel 1 of 'x'."""
    return f"{case}_{number:04d}"


def channel_count(cases: Iterable[set[int]]) -> int:
    """How many channels the numbers of the cases stand for; 0 where they may as well count scans.

    Channels are numbered from 0 without a gap, `MOST_CHANNELS` at most; each is there in half of the cases or more,
    and where there are several, one case alone does not show that its numbers mean channels.
    """
    each = list(cases)
    times = Counter(number for numbers in each for number in numbers)
    count = len(times)
    if not count or count > MOST_CHANNELS or set(times) != set(range(count)):
        return 0
    if count > 1 and (len(each) < 2 or 2 * min(times.values()) < len(each)):
        return 0
    return count
