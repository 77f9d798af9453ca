"""The console of rich for tables, bars and lines, with texts that cannot command the terminal."""

from collections.abc import Iterable
from typing import Any

import rich.console
from rich.segment import Segment
from rich.text import Text

from scanfoundry.configs.text import printable


class Console(rich.console.Console):
    """rich's console without its markup, which file names can hold too, and without control characters in texts."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"markup": False, "emoji": False, **options})

    def render_str(self, text: str, **options: Any) -> Text:
        """A text or a cell of a table, escaped before room is made for it."""
        return super().render_str(printable(text, lines=True), **options)

    def render(self, *given: Any, **options: Any) -> Iterable[Segment]:
        """What is about to be shown, escaped: rich's own colours and cursor movements are not part of a text."""
        for segment in super().render(*given, **options):
            text = segment.text if segment.control else printable(segment.text, lines=True)
            yield segment if text is segment.text or segment.control else Segment(text, segment.style)
