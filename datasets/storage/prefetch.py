"""Fetches shards before they are needed, by threads of the training process."""

import threading
from collections import deque
from collections.abc import Iterable
from typing import NamedTuple

from scanfoundry.datasets.storage.locks import Stopped
from scanfoundry.datasets.storage.space import NoRoom
from scanfoundry.datasets.storage.store import Store

_GRACE = 2.0  # seconds for a thread to notice that it is over


class PrefetchRequest(NamedTuple):
    """A file that will be needed."""

    store: Store
    name: str
    sha256: str
    size: int  # bytes


class Prefetcher:
    """Fetches files into the cache in the order in which they will be used.

    An error is kept in `failed` and not raised: whoever needs the file meets it again and raises it.

    Args:
        budget: bytes of all files ahead together, so that they do not displace each other before they are used; see
            `CacheConfig.ahead_bytes`.
        parallel: files that are fetched at a time.
    """

    def __init__(self, budget: int, parallel: int = 3) -> None:
        self._budget, self._parallel = budget, parallel
        self._queue: deque[PrefetchRequest] = deque()
        self._busy: set[str] = set()  # sha256
        self._change = threading.Condition()
        self._stop = threading.Event()
        self._threads: list[threading.Thread] = []
        self.failed: dict[str, str] = {}  # sha256: why; not tried again

    def ahead(self, wanted: Iterable[PrefetchRequest]) -> None:
        """Replace the files in the queue; fetches under way go on. Returns at once.

        Args:
            wanted: the files, soonest first.
        """
        chosen: dict[str, PrefetchRequest] = {}
        total = 0
        for each in wanted:
            if not each.store.remote or each.sha256 in chosen:
                continue
            total += each.size
            if total > self._budget:
                break
            chosen[each.sha256] = each
        with self._change:
            skip = self._busy | self.failed.keys()
            self._queue = deque(each for sha256, each in chosen.items() if sha256 not in skip)
            self._change.notify_all()
        if self._queue and not self._threads and not self._stop.is_set():
            self._start()

    def _start(self) -> None:
        for number in range(self._parallel):
            thread = threading.Thread(target=self._work, daemon=True, name=f"scanfoundry-prefetch-{number}")
            self._threads.append(thread)
            thread.start()

    def _work(self) -> None:
        while (wanted := self._next()) is not None:
            reason = None
            try:
                wanted.store.fetch(wanted.name, wanted.sha256, wanted.size, self._stop)
            except Stopped:
                return
            except NoRoom:
                pass  # there may be some when it is asked for again
            except Exception as error:
                reason = str(error)
            with self._change:
                self._busy.discard(wanted.sha256)
                if reason is not None:
                    self.failed[wanted.sha256] = reason

    def _next(self) -> PrefetchRequest | None:
        with self._change:
            self._change.wait_for(lambda: self._queue or self._stop.is_set())
            if self._stop.is_set():
                return None
            wanted = self._queue.popleft()
            self._busy.add(wanted.sha256)
            return wanted

    def close(self) -> None:
        """Ends the threads; a file on its way stays for a later process to complete."""
        self._stop.set()
        with self._change:
            self._queue.clear()
            self._change.notify_all()
        for thread in self._threads:
            thread.join(_GRACE)
