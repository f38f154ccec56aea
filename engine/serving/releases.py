"""What a replica holds: {live, previous, trial}, following the registry's `live` file.

    user_config {registry, change}  ->  refresh()  ->  held.live
                                        refused: kept the old one, and why

The first release is loaded before the replica is ready; later ones in the background, while the
old one answers. A release on trial that cannot be had leaves all users to the live one.
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
class Trial:
    """A release in memory that answers as an experiment says."""

    experiment: Experiment
    release: LoadedRelease


@dataclass(frozen=True, slots=True)
class Held:
    """Releases in memory; replaced as one reference."""

    live: LoadedRelease | None = None
    previous: LoadedRelease | None = None
    trial: Trial | None = None

    def get(self, release_id: str) -> LoadedRelease | None:
        """Return a release by id if it is held."""
        tried = None if self.trial is None else self.trial.release
        for release in (self.live, self.previous, tried):
            if release is not None and release.release_id == release_id:
                return release
        return None

    def of_user(self, user_id: str | None) -> LoadedRelease | None:
        """Return the release that answers a user (None: a guest)."""
        tried = self._tried(user_id, is_shadow=False)
        return self.live if tried is None else tried

    def shadow_of(self, user_id: str | None) -> str | None:
        """Return the release that answers beside the one that answers a user, if one does."""
        tried = self._tried(user_id, is_shadow=True)
        return None if tried is None else tried.release_id

    def _tried(self, user_id: str | None, *, is_shadow: bool) -> LoadedRelease | None:
        trial = self.trial
        if trial is None or user_id is None or trial.experiment.is_shadow != is_shadow:
            return None
        return trial.release if trial.experiment.includes(user_id) else None


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
    refusal: Refusal | None


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
        self._refusal: Refusal | None = None
        self._unloadable: set[str] = set()
        self._one_refresh = asyncio.Lock()
        self._background: asyncio.Task[None] | None = None

    async def reconfigure(self, user_config: dict[str, object]) -> None:
        """Follow another `change` of the registry; waits only if nothing is held yet."""
        root, change = user_config.get("registry"), user_config.get("change")
        if not isinstance(root, str) or not isinstance(change, int):
            raise ConfigError(
                f"user_config needs registry (text) and change (whole number), got {user_config}"
            )
        self._registry = Registry(absolute(root))
        self._unloadable.clear()
        refresh = asyncio.create_task(self._refresh(change))
        self._background = refresh        # a task without a reference may be collected
        if self.held.live is None:
            await refresh

    def find(
        self, release_id: str | None, user_id: str | None = None
    ) -> LoadedRelease | Unavailable:
        """Return a release that is held (None: the one that answers the user, a guest or whoever
        it is); else say which one is live here, and go and get it.

        The other half of an answer names what it holds: that may be a release to which the change
        has not come here yet, or one that this replica, started later, never had. One that cannot
        be loaded is tried again at the next `change`, not at every request.
        """
        held = self.held
        release = held.of_user(user_id) if release_id is None else held.get(release_id)
        if release is not None:
            return release
        is_busy = self._one_refresh.locked()
        if self._registry is not None and not is_busy and release_id not in self._unloadable:
            self._background = asyncio.create_task(self._catch_up(release_id))
        return Unavailable(release_id, None if held.live is None else held.live.release_id)

    def state(self) -> ReplicaState:
        """Return what this replica holds and refuses."""
        live, previous, trial = self.held.live, self.held.previous, self.held.trial
        return ReplicaState(
            None if live is None else live.release_id,
            None if previous is None else previous.release_id,
            None if trial is None else trial.experiment, self._change, self._refusal,
        )

    async def _catch_up(self, release_id: str | None) -> None:
        """Look at `live` again; then hold this release beside it, if it is another."""
        await self._refresh(self._change)
        if release_id is None or release_id in self._unloadable:
            return
        async with self._one_refresh:
            if self.held.live is not None and self.held.get(release_id) is None:
                self.held = replace(self.held, previous=None)
                try:
                    self.held = replace(self.held, previous=await self._loaded(release_id))
                except Exception as error:  # noqa: BLE001  the live one goes on
                    log.error("release %r, which the other half holds: %s", release_id, error)

    async def _refresh(self, change: int) -> None:
        """Load what `live` says; if that fails, keep what is held, else try the previous one."""
        async with self._one_refresh:
            assert self._registry is not None
            try:
                wanted, previous, experiment = await asyncio.to_thread(self._registry.live)
            except (EngineError, OSError) as error:
                self._refuse("", error)
                self._change = change
                return
            await self._hold(wanted, previous)
            await self._try_out(experiment)
            self._change = change

    async def _hold(self, wanted: str, previous: str | None) -> None:
        """Hold `wanted`, or, if it cannot be had and nothing is held, the previous one."""
        if wanted in self._unloadable and self.held.live is not None:
            return                              # not again before the next change
        if await self._take(wanted):
            self._refusal = None
        elif self.held.live is None and previous is not None:
            refusal = self._refusal
            await self._take(previous)
            self._refusal = refusal             # of the one that is wanted

    async def _try_out(self, experiment: Experiment | None) -> None:
        """Let a release answer as an experiment says; if it cannot be had, the live one does."""
        held = self.held
        if held.live is None or experiment is None or held.live.release_id == experiment.release_id:
            self.held = replace(held, trial=None)
            return
        release = held.get(experiment.release_id)
        if release is None:
            self.held = replace(held, trial=None)       # before another one comes
            if experiment.release_id in self._unloadable:
                return
            try:
                release = await self._loaded(experiment.release_id)
            except Exception as error:  # noqa: BLE001  whatever it is, the live one goes on
                if self._refusal is None:
                    self._refuse(experiment.release_id, error)
                return
        self.held = replace(self.held, trial=Trial(experiment, release))
        log.info("%s in this replica", experiment)

    async def _take(self, release_id: str) -> bool:
        """Make a release the live one here; tell whether it is."""
        held = self.held
        if held.live is not None and held.live.release_id == release_id:
            return True
        ready = held.get(release_id)
        if ready is None:
            # The older one goes before the new one comes.
            self.held = replace(held, previous=None)
            try:
                ready = await self._loaded(release_id)
            except Exception as error:  # noqa: BLE001  whatever it is, the old one goes on
                self._refuse(release_id, error)
                return False
        self.held = replace(self.held, live=ready, previous=held.live)
        log.info("release %s is live in this replica", release_id)
        return True

    async def _loaded(self, release_id: str) -> LoadedRelease:
        """Load a release in a thread; if that fails, not again before the next change."""
        try:
            release = await asyncio.to_thread(self._load, self._registry_now(), release_id)
            if self._prepare is not None:
                await asyncio.to_thread(self._prepare, release)
            return release
        except Exception:
            self._unloadable.add(release_id)
            raise

    def _refuse(self, release_id: str, error: Exception) -> None:
        self._refusal = Refusal(release_id, f"{type(error).__name__}: {error}")
        live = self.held.live
        log.error(
            "release %r refused, keeping %s: %s", release_id,
            "none" if live is None else live.release_id, self._refusal.reason,
        )

    def _registry_now(self) -> Registry:
        assert self._registry is not None
        return self._registry
