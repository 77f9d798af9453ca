"""The console of rich for tables, bars and lines, with texts that cannot command the terminal."""

from collections.abc import Iterable
from typing import IO, Any

import rich.console
from rich.console import RenderHook
from rich.segment import Segment
from rich.text import Text

from scanfoundry.configs.text import guard_stand_ins, printable


class Console(rich.console.Console):
    """rich's console without its markup, which file names can hold too, and without control characters in texts."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"markup": False, "emoji": False, **options})

    @property
    def file(self) -> IO[str]:
        """The stream itself, also where a progress bar's stand-in lies before a guarded one: what comes here is escaped
        already, and rich's own colours must not be."""
        found = super().file
        while (inner := getattr(found, "rich_proxied_file", None)) is not None:
            found = inner
        return found

    @file.setter
    def file(self, stream: IO[str]) -> None:
        self._file = stream

    def push_render_hook(self, hook: RenderHook) -> None:
        """A progress bar begins; it has just put its own streams in place of the guarded ones."""
        guard_stand_ins()
        super().push_render_hook(hook)

    def render_str(self, text: str, **options: Any) -> Text:
        """A text or a cell of a table, escaped before room is made for it."""
        return super().render_str(printable(text, lines=True), **options)

    def render(self, *given: Any, **options: Any) -> Iterable[Segment]:
        """What is about to be shown, escaped: rich's own colours and cursor movements are not part of a text."""
        for segment in super().render(*given, **options):
            text = segment.text if segment.control else printable(segment.text, lines=True)
            yield segment if text is segment.text or segment.control else Segment(text, segment.style)
