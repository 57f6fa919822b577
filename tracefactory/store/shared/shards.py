"""Leases of the shards of a stage, which several runs divide between them.

    leases/runs/<run>.json                                 held and renewed by a run while it goes on (`SharedLease`)
    leases/members/<stage>-<key16>/<count>-<run>.json      a run that works on a stage in `count` shards
    leases/stages/<stage>-<key16>/<index>-of-<count>.json  the run that works on a shard

A lease of a shard is not renewed: it holds as long as the lease of its run, so that a run renews one object however
many shards it holds. That of a shard which is finished is deleted; the others are free when their run gives its lease
back, after everything that it has paid for was put. Where the lease of a run has expired, who wants one of its shards
first writes that the run has ended, on the condition that it was not renewed meanwhile; its next renewal fails. Only
then are its shards taken.
"""

from __future__ import annotations

import re
import time
from typing import NamedTuple

from tracefactory.store.shared import leases
from tracefactory.store.shared.leases import FREE, clock_of, owner_in, owner_of
from tracefactory.store.shared.objects import Objects

_RUN = re.compile(r"[\w@ -][\w.@ -]*")
_MEMBER = re.compile(r"(\d{5,})-([\w@ -][\w.@ -]*)\.json")


def lease_of_run(run: str) -> str:
    """Return the name of the lease that a run holds while it goes on, for `SharedLease`."""
    return f"runs/{run}"


class Holder(NamedTuple):
    """Who holds a lease: the run, empty if it is not known, and a description for the user."""

    run: str
    who: str


class LivingRuns:
    """Tells which runs go on, by their leases.

    Args:
        objects: the shared state.
        run: the run that asks.
    """

    def __init__(self, objects: Objects, run: str) -> None:
        self.objects, self.run = objects, run
        self._ahead_s: float | None = None  # the clock of the store minus the monotonic clock here

    def holder(self, run: str) -> Holder | None:
        """Return a run that goes on, None for one that has ended. One whose lease has expired is ended by this.

        Raises:
            Unreachable: when the shared state cannot be asked.
        """
        name = f"leases/{lease_of_run(run)}.json"
        try:
            content, head = self.objects.get(name)
        except FileNotFoundError:
            return None
        if content == FREE:
            return None
        owner = owner_in(content)
        found = Holder(run, f"run {run} (process {owner.get('pid')} on {owner.get('host')})")
        if self.age_s(head.modified) < leases.EXPIRES_S:
            return found
        # Where this fails, it has been renewed, or another run does the same: it is asked for again.
        return found if self.objects.replace(name, FREE, head.etag) is None else None

    def age_s(self, modified: float) -> float:
        """Return for how many seconds an object has not been written, by the clock of the store, or less.

        Raises:
            Unreachable: when the shared state cannot be asked.
        """
        if self._ahead_s is None:  # asked once: what the answer took only makes ages smaller
            self._ahead_s = clock_of(self.objects, self.run) - time.monotonic()
        return time.monotonic() + self._ahead_s - modified


class Members:
    """The runs that work on the shards of one stage.

    Args:
        runs: tells which runs go on.
        folder: the name of the stage's folder.
    """

    def __init__(self, runs: LivingRuns, folder: str) -> None:
        self.runs, self._prefix = runs, f"leases/members/{folder}"

    def add(self, count: int) -> None:
        """Write that this run works on the stage in `count` shards.

        Raises:
            Unreachable: when it cannot be written.
        """
        self.runs.objects.create(self._name(count), FREE)

    def remove(self, count: int) -> None:
        """Write that it no longer does.

        Raises:
            Unreachable: when it cannot be written; it counts until the run ends.
        """
        self.runs.objects.delete(self._name(count))

    def in_the_way(self, count: int | None) -> Holder | None:
        """Return a run with which this one cannot work on the stage: one that divides it into other shards.

        Args:
            count: the number of shards of this run; None if it does the stage as a whole, for which any run is one.

        Raises:
            Unreachable: when the shared state cannot be asked.
        """
        for one in list(self.runs.objects.list(self._prefix)):
            match = _MEMBER.fullmatch(one.name.removeprefix(f"{self._prefix}/"))
            if match is None or match[2] == self.runs.run or int(match[1]) == count:
                continue
            if (found := self.runs.holder(match[2])) is not None:
                return found._replace(who=f"{found.who}, which works on it in {int(match[1])} shards")
            self.runs.objects.delete(one.name)  # of a run that has ended, which never comes back
        return None

    def _name(self, count: int) -> str:
        return f"{self._prefix}/{count:05d}-{self.runs.run}.json"


class ShardLeases:
    """The leases of one run on the shards of one stage; threads may share it.

    Args:
        runs: tells which runs go on.
        folder: the name of the stage's folder.
        count: the number of its shards.
    """

    def __init__(self, runs: LivingRuns, folder: str, count: int) -> None:
        self.runs, self.objects, self.count = runs, runs.objects, count
        self._prefix = f"leases/stages/{folder}"
        self._own = owner_of(runs.run)
        self.held: set[int] = set()
        self.inherited: set[int] = set()
        """Shards that another run has held before, which may have paid for some of their completions."""

    def take(self, index: int) -> Holder | None:
        """Try to take the lease of a shard; return who holds it, None on success.

        Raises:
            Unreachable: when the shared state cannot be asked.
        """
        name = self._name(index)
        if self.objects.create(name, self._own) is None:
            try:
                content, head = self.objects.get(name)
            except FileNotFoundError:
                return Holder("", "another run")  # it has just ended its work on it
            if content != self._own:  # otherwise the answer to the first of two attempts was lost
                if (holder := self._holder(content, head.modified)) is not None:
                    return holder
                self.inherited.add(index)
                if self.objects.replace(name, self._own, head.etag) is None:
                    return Holder("", "another run")  # or this one, whose answer was lost: the next attempt tells
        self.held.add(index)
        return None

    def end(self, index: int) -> None:
        """Delete the lease of a shard that is finished in the shared state, whoever holds it by now.

        Raises:
            Unreachable: when it cannot be deleted; it holds until the run ends.
        """
        self.objects.delete(self._name(index))
        self.held.discard(index)

    def _holder(self, content: bytes, modified: float) -> Holder | None:
        run = owner_in(content).get("run")
        if isinstance(run, str) and _RUN.fullmatch(run):
            return None if run == self.runs.run else self.runs.holder(run)
        return Holder("", "a run whose lease is damaged") if self.runs.age_s(modified) < leases.EXPIRES_S else None

    def _name(self, index: int) -> str:
        return f"{self._prefix}/{index:05d}-of-{self.count:05d}.json"
