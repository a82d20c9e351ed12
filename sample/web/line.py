"""The line of those who wait for the model: first come, first served, and each is told how long.

How long comes from what the last jobs took, each by what it cost: pixels times steps. The time
that is told is one that nine of ten jobs keep; compiling, which nobody foresees, is not in it.
"""

import collections
import statistics
import threading
import time

from fusionjax.errors import UserError
from sample.job import Job
from sample.progress import duration

_LAST = 20  # jobs say how long the next ones take
_EXTRA_STEPS = 4  # that reading, decoding and writing a picture come to, roughly


def cost(job: Job, side: int) -> float:
    """What a job costs, in pixels times steps.

    Args:
        job: with or without its size.
        side: of the base's own pictures in pixels.
    """
    pixels = (job.height or side) * (job.width or side)
    passes = job.num_inference_steps * (job.strength if job.image else 1) + _EXTRA_STEPS
    if job.upscale:
        larger = job.num_inference_steps * job.upscale_strength + _EXTRA_STEPS
        passes += larger * job.upscale**2
    return job.num_images_per_prompt * pixels * passes


class Place:
    """Somebody's place in a `Line`."""

    def __init__(self, cost: float) -> None:
        self.cost = cost
        self.began: float | None = None  # when its turn came; `time.monotonic`
        self.seconds_left: float | None = None  # as its own steps tell


class Line:
    """Those who wait, and the one whose turn it is.

    Args:
        most: that may wait.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self._places: list[Place] = []
        self._changed = threading.Condition()
        self._rates: collections.deque[float] = collections.deque(maxlen=_LAST)

    def enter(self, cost: float) -> Place:
        """A place at the end.

        Raises:
            UserError: if too many wait.
        """
        with self._changed:
            waiting = len(self._places) - 1
            if waiting >= self.most:
                first = self._seconds_until(self._places[1])
                when = "later" if first is None else f"in {duration(max(first, 1))}"
                raise UserError(f"the queue is full: {waiting} requests wait; ask again {when}")
            place = Place(cost)
            self._places.append(place)
            self._begin()
            return place

    def leave(self, place: Place, seconds: float | None = None) -> None:
        """Gives a place up.

        Args:
            place: from `enter`.
            seconds: that its job took, if it came to its end.
        """
        with self._changed:
            if seconds is not None:
                self._rates.append(seconds / place.cost)
            if place in self._places:
                self._places.remove(place)
            self._begin()
            self._changed.notify_all()

    def wait(self, place: Place, seconds: float) -> bool:
        """Waits until the place's turn comes, no longer than so many seconds; whether it has."""
        with self._changed:
            return self._changed.wait_for(lambda: place.began is not None, seconds)

    def told(self, place: Place) -> str:
        """How many are before a place, and when its pictures will be there; "" before nobody."""
        with self._changed:
            if not (before := self._places.index(place)):
                return ""
            until = self._seconds_until(place)
            if until is None:
                return f"{before} before you"
            there = max(until + self._takes(place), 1)
        return f"{before} before you; your picture is there within {duration(there)}"

    def _begin(self) -> None:
        if self._places and self._places[0].began is None:
            self._places[0].began = time.monotonic()

    def _seconds_until(self, place: Place) -> float | None:
        """Until the turn of a place that waits; None before a first job has told."""
        if not self._rates:
            return None
        first, *others = self._places[: self._places.index(place)]
        assert first.began is not None
        rest = max(self._takes(first) - (time.monotonic() - first.began), first.seconds_left or 0)
        return rest + sum(map(self._takes, others))

    def _takes(self, place: Place) -> float:
        """Seconds of a job, which nine of ten such ones keep."""
        rates = sorted(self._rates)
        high = statistics.quantiles(rates, n=10, method="inclusive")[-1] if rates[1:] else rates[0]
        return high * place.cost
