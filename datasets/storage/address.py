"""Addresses of a data set's files, and what can be wrong with them.

Nothing of a URL but scheme, host and path is ever shown: user names, passwords and signed queries are not.
"""

import re
from urllib.parse import urlsplit, urlunsplit

from scanfoundry.configs.errors import UserError
from scanfoundry.datasets.storage.faults import StorageFault

_AGAIN = {408, 425, 429}  # and 5xx
_SIGN_IN = {401, 403}


class Unavailable(UserError):
    """A file that cannot be had from where it should lie."""

    status: int | None = None  # of the server's answer, where that is the reason


class Away(Unavailable, StorageFault):
    """The server did not answer as it should in any attempt: it may be back later."""


class Transient(Exception):
    """Trying again may help, not before `wait` seconds where the server asked for that."""

    def __init__(self, reason: str, wait: float = 0.0) -> None:
        super().__init__(reason)
        self.wait = wait


class Changed(Transient):
    """The file on the server is no longer the one whose first bytes are here."""


def is_url(location: str) -> bool:
    """Whether `location` has a scheme, as in 's3://bucket/folder'."""
    return re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", location) is not None


def join(root: str, name: str) -> str:
    """URL of the file `name` in the folder `root`; a query (a signature of the folder) stays at the end."""
    parts = urlsplit(root)
    return urlunsplit(parts._replace(path=f"{parts.path.rstrip('/')}/{name}", fragment=""))


def shown(url: str) -> str:
    """`url` as it may be told: without user, password, query and fragment."""
    parts = urlsplit(url)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def refusal(status: int, url: str) -> Unavailable | None:
    """The error that the status of an answer means for good, or None where trying again may help."""
    if status >= 500 or status in _AGAIN:
        return None
    if status in _SIGN_IN:
        meaning = f"access is denied (status {status}); check the credentials, or whether a signed address has expired"
    else:
        meaning = "there is no such file (status 404)" if status == 404 else f"status {status}"
    error = Unavailable(f"{shown(url)} cannot be fetched: {meaning}")
    error.status = status
    return error
