"""What a replica holds: {live, previous, challenger}, following the registry's `live` file.

    user_config {registry, change}  ->  refresh()  ->  held.live
                                        refused: kept the old one, and why

The first release is loaded before the replica is ready; later ones in the background, while the
old one answers. A challenger that cannot be had leaves all users to the live one.
"""

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass, replace

from engine.errors import ConfigError, EngineError
from engine.recommender.release import LoadedRelease
from engine.releases.experiment import Experiment
from engine.releases.registry import Registry
from engine.storage import absolute

log = logging.getLogger(__name__)

Load = Callable[[Registry, str], LoadedRelease]


@dataclass(frozen=True, slots=True)
class Challenger:
    """A release in memory that answers as an experiment says."""

    experiment: Experiment
    release: LoadedRelease


@dataclass(frozen=True, slots=True)
class Held:
    """Releases in memory; replaced as one reference."""

    live: LoadedRelease | None = None
    previous: LoadedRelease | None = None
    challenger: Challenger | None = None

    def get(self, release_id: str) -> LoadedRelease | None:
        """Return a release by id if it is held."""
        challenger = None if self.challenger is None else self.challenger.release
        for release in (self.live, self.previous, challenger):
            if release is not None and release.release_id == release_id:
                return release
        return None

    def answering(self) -> list[LoadedRelease]:
        """Return the releases that answer requests now."""
        challenger = None if self.challenger is None else self.challenger.release
        return [each for each in (self.live, challenger) if each is not None]

    def of_user(self, user_id: str | None) -> LoadedRelease | None:
        """Return the release that answers a user (None: a guest)."""
        challenger = self._challenger_of(user_id, is_shadow=False)
        return self.live if challenger is None else challenger

    def shadow_of(self, user_id: str | None) -> str | None:
        """Return the release that answers beside the one that answers a user, if one does."""
        challenger = self._challenger_of(user_id, is_shadow=True)
        return None if challenger is None else challenger.release_id

    def is_shadow(self, release_id: str) -> bool:
        """Tell whether a release answers for the record alone."""
        found = self.challenger
        return (
            found is not None and found.experiment.is_shadow
            and found.release.release_id == release_id
        )

    def _challenger_of(self, user_id: str | None, *, is_shadow: bool) -> LoadedRelease | None:
        found = self.challenger
        if found is None or user_id is None or found.experiment.is_shadow != is_shadow:
            return None
        return found.release if found.experiment.includes(user_id) else None


@dataclass(frozen=True, slots=True)
class Refusal:
    """A release that could not be used."""

    release_id: str
    reason: str


@dataclass(frozen=True, slots=True)
class ReplicaState:
    """What a replica says of itself."""

    release_id: str | None
    previous_id: str | None
    experiment: Experiment | None
    """The one in which this replica answers."""
    change: int
    """Counter of the last user_config whose release is loaded or refused."""
    refusals: list[Refusal]
    """Of the releases that it should serve or try out; "": what is live cannot be read."""


@dataclass(frozen=True, slots=True)
class Unavailable:
    """The answer of a replica that does not hold the release asked for."""

    release_id: str | None
    held_id: str | None
    """The release that it would answer from."""


class ReleaseHolder:
    """Holds releases for one replica; all methods run on its event loop."""

    def __init__(
        self, load: Load, prepare: Callable[[LoadedRelease], object] | None = None
    ) -> None:
        """`load` and then `prepare`, so that no request waits for it, may take long; they run in a
        thread.
        """
        self.held = Held()
        self._load, self._prepare = load, prepare
        self._registry: Registry | None = None
        self._change = 0
        self._refusals: dict[str, Refusal] = {}
        """By release; "": `live` cannot be read."""
        self._unwanted: set[str] = set()
        """Not to be loaded before the next change: it failed, or its experiment is over."""
        self._one_refresh = asyncio.Lock()
        self._has_live = asyncio.Event()
        self._background: asyncio.Task[None] | None = None

    async def reconfigure(self, user_config: dict[str, object]) -> None:
        """Follow another `change` of the registry; waits only until something is live here."""
        root, change = user_config.get("registry"), user_config.get("change")
        if not isinstance(root, str) or not isinstance(change, int):
            raise ConfigError(
                f"user_config needs registry (text) and change (whole number), got {user_config}"
            )
        self._registry = Registry(absolute(root))
        refresh = asyncio.create_task(self._refresh(change))
        self._background = refresh        # a task without a reference may be collected
        if self.held.live is None:
            has_live = asyncio.create_task(self._has_live.wait())
            await asyncio.wait([refresh, has_live], return_when=asyncio.FIRST_COMPLETED)
            has_live.cancel()
            if refresh.done():
                refresh.result()                # what nobody expected ends the replica

    def find(
        self, release_id: str | None, user_id: str | None = None
    ) -> LoadedRelease | Unavailable:
        """Return a release that is held (None: the one that answers the user, or a guest); else say
        which one is live here, and go and get it.

        The other half of an answer names what it holds: that may be a release to which the change
        has not come here yet, or one that this replica, started later, never had. One that cannot
        be loaded is tried again at the next `change`, not at every request.
        """
        held = self.held
        release = held.of_user(user_id) if release_id is None else held.get(release_id)
        if release is not None:
            return release
        is_busy = self._one_refresh.locked()
        if self._registry is not None and not is_busy and release_id not in self._unwanted:
            self._background = asyncio.create_task(self._catch_up(release_id))
        return Unavailable(release_id, None if held.live is None else held.live.release_id)

    def state(self) -> ReplicaState:
        """Return what this replica holds and refuses."""
        live, previous, challenger = self.held.live, self.held.previous, self.held.challenger
        return ReplicaState(
            None if live is None else live.release_id,
            None if previous is None else previous.release_id,
            None if challenger is None else challenger.experiment,
            self._change, [*self._refusals.values()],
        )

    async def _catch_up(self, release_id: str | None) -> None:
        """Look at `live` again; then hold this release beside it, if it is another."""
        await self._refresh(None)
        if release_id is None or release_id in self._unwanted:
            return
        async with self._one_refresh:
            if self.held.live is not None and self.held.get(release_id) is None:
                self.held = replace(self.held, previous=None)
                try:
                    self.held = replace(self.held, previous=await self._loaded(release_id))
                except Exception as error:  # noqa: BLE001  the live one goes on
                    log.error("release %r, which the other half holds: %s", release_id, error)

    async def _refresh(self, change: int | None) -> None:
        """Load what `live` says; if that fails, keep what is held, else try the previous one.

        At a change (None: the same as before) also what could not be had.
        """
        async with self._one_refresh:
            if change is not None:
                self._unwanted.clear()
            await self._follow_live()
            self._change = self._change if change is None else change

    async def _follow_live(self) -> None:
        try:
            live = await asyncio.to_thread(self._registry_now().live)
        except (EngineError, OSError) as error:
            self._refuse("", error)
            return
        named = {live.release_id, live.experiment.release_id if live.experiment else None}
        self._refusals = {key: each for key, each in self._refusals.items() if key in named}
        await self._hold(live.release_id, live.previous_id)
        await self._follow(live.experiment)

    async def _hold(self, wanted: str, previous: str | None) -> None:
        """Hold `wanted`, or, if it cannot be had and nothing is held, the previous one."""
        if not await self._take(wanted) and self.held.live is None and previous is not None:
            await self._take(previous)
            self._refusals.pop(previous, None)      # nobody asked for it

    async def _follow(self, experiment: Experiment | None) -> None:
        """Let a challenger answer as an experiment says; if it cannot be had, the live one does."""
        live, before = self.held.live, self.held.challenger
        if experiment is not None and live is not None and experiment.release_id == live.release_id:
            experiment = None
        if before is not None and (experiment is None
                                   or before.release.release_id != experiment.release_id):
            # It goes before another one comes, and late requests do not call it back.
            self.held = replace(self.held, challenger=None)
            if self.held.get(before.release.release_id) is None:    # else it was promoted
                self._unwanted.add(before.release.release_id)
        if experiment is None or live is None:
            return
        release = await self._had(experiment.release_id)
        if release is not None:
            challenger = Challenger(experiment, release)
            if challenger != self.held.challenger:
                log.info("%s in this replica", experiment)
            self.held = replace(self.held, challenger=challenger)

    async def _take(self, release_id: str) -> bool:
        """Make a release the live one here; tell whether it is."""
        held = self.held
        if held.live is not None and held.live.release_id == release_id:
            self._refusals.pop(release_id, None)
            return True
        if held.get(release_id) is None and release_id not in self._unwanted:
            # The older one goes before the new one comes.
            self.held = replace(held, previous=None)
        ready = await self._had(release_id)
        if ready is None:
            return False
        self.held = replace(self.held, live=ready, previous=held.live)
        self._has_live.set()
        log.info("release %s is live in this replica", release_id)
        return True

    async def _had(self, release_id: str) -> LoadedRelease | None:
        """Return a release that is held, or load it; None where it is refused."""
        release = self.held.get(release_id)
        if release is None:
            if release_id in self._unwanted and self.held.live is not None:
                return None                     # not again before the next change
            try:
                release = await self._loaded(release_id)
            except Exception as error:  # noqa: BLE001  whatever it is, the live one goes on
                self._refuse(release_id, error)
                return None
        self._refusals.pop(release_id, None)
        return release

    async def _loaded(self, release_id: str) -> LoadedRelease:
        """Load a release in a thread; if that fails, not again before the next change."""
        try:
            release = await asyncio.to_thread(self._load, self._registry_now(), release_id)
            if self._prepare is not None:
                await asyncio.to_thread(self._prepare, release)
            return release
        except Exception:
            self._unwanted.add(release_id)
            raise

    def _refuse(self, release_id: str, error: Exception) -> None:
        refusal = Refusal(release_id, f"{type(error).__name__}: {error}")
        self._refusals[release_id] = refusal
        live = self.held.live
        log.error(
            "release %r refused, keeping %s: %s", release_id,
            "none" if live is None else live.release_id, refusal.reason,
        )

    def _registry_now(self) -> Registry:
        assert self._registry is not None
        return self._registry
