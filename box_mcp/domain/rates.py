"""How often somebody may: so many a minute, which may be used at once; pure."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

MINUTE = 60.0  # s
MOST = 10_000
"""Keys that are remembered, the latest used; one that is forgotten may begin anew."""


@dataclass
class _Bucket:
    """What is left, as it was at a moment."""

    left: float
    at: float


class Rates:
    """For each key, `per_minute` in a minute; None for as many as one likes."""

    def __init__(self, per_minute: int | None, most: int = MOST) -> None:
        self._full = per_minute
        self._most = most
        self._buckets: OrderedDict[str, _Bucket] = OrderedDict()

    def __len__(self) -> int:
        return len(self._buckets)

    def take(self, key: str, now: float) -> float:
        """Takes one and returns 0; or takes none, and returns how many seconds to wait for it."""
        if (wait := self.wait(key, now)) == 0 and self._full is not None:
            self._bucket(key, now).left -= 1
        return wait

    def wait(self, key: str, now: float) -> float:
        """How many seconds there are until one can be taken; 0 for none."""
        if self._full is None:
            return 0.0
        left = self._bucket(key, now).left
        return 0.0 if left >= 1 else (1 - left) * MINUTE / self._full

    def _bucket(self, key: str, now: float) -> _Bucket:
        assert self._full is not None  # else nothing is counted
        bucket = self._buckets.get(key)
        if bucket is None:
            bucket = self._buckets[key] = _Bucket(self._full, now)
            if len(self._buckets) > self._most:
                self._buckets.popitem(last=False)
        else:
            self._buckets.move_to_end(key)
        since = max(0.0, now - bucket.at)
        bucket.left = min(float(self._full), bucket.left + since * self._full / MINUTE)
        bucket.at = now
        return bucket
