"""The exception for mistakes that the user can correct, and how several of them are reported at once."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

MOST_SHOWN = 20  # mistakes of one data set that are shown one by one; of the others the number


class UserError(Exception):
    """A mistake or a broken input of the user's. Its text is one line that says what is wrong and what to do.

    The command line prints the text and exits with code 2, without a traceback.
    """


class UserErrors(UserError):
    """Several mistakes: the first line says how many there are, then one line for each of the first `MOST_SHOWN`."""

    def __init__(self, where: str, mistakes: Sequence[str]) -> None:
        shown = [f"  {mistake}" for mistake in mistakes[:MOST_SHOWN]]
        rest = len(mistakes) - len(shown)
        more = [f"  and {rest} more"] if rest else []
        super().__init__("\n".join([f"{len(mistakes)} mistakes in {' '.join(where.split())}:", *shown, *more]))
        self.mistakes = list(mistakes)


class Mistakes:
    """Collects the mistakes of a data set, so that they are reported together and not one at each start."""

    def __init__(self, where: str) -> None:
        self.where = where
        self._found: dict[str, None] = {}  # in their order, each once

    def __len__(self) -> int:
        return len(self._found)

    def add(self, mistake: str | UserError) -> None:
        """Keep one mistake, or all of a `UserErrors`, each as one line."""
        for each in mistake.mistakes if isinstance(mistake, UserErrors) else [str(mistake)]:
            self._found[" ".join(each.split())] = None

    @contextmanager
    def each(self) -> Iterator[None]:
        """Keep a UserError that its block raises, and go on behind the block."""
        try:
            yield
        except UserError as error:
            self.add(error)

    @contextmanager
    def instead(self) -> Iterator[None]:
        """Raise the mistakes that were kept in place of a UserError of its block, which may only follow from them."""
        try:
            yield
        except UserError:
            self.raise_if_any()
            raise

    def raise_if_any(self) -> None:
        """Raise the mistakes that were kept, if any.

        Raises:
            UserError: there is one mistake.
            UserErrors: there are several.
        """
        if len(self._found) > 1:
            raise UserErrors(self.where, list(self._found))
        if self._found:
            raise UserError(next(iter(self._found)))
