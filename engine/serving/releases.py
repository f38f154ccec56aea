"""What a replica holds: {live, previous}, following the registry's `live` file.

    user_config {registry, change}  ->  refresh()  ->  held.live
                                        refused: kept the old one, and why

The first release is loaded before the replica is ready; later ones in the background, while the
old one answers.
"""

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass

from engine.errors import ConfigError, EngineError
from engine.recommender.release import LoadedRelease
from engine.releases.registry import Registry
from engine.storage import absolute

log = logging.getLogger(__name__)

Load = Callable[[Registry, str], LoadedRelease]


@dataclass(frozen=True, slots=True)
class Held:
    """Releases in memory; replaced as one reference."""

    live: LoadedRelease | None = None
    previous: LoadedRelease | None = None

    def get(self, release_id: str | None) -> LoadedRelease | None:
        """Return a release by id (None: the live one) if it is held."""
        if release_id is None:
            return self.live
        for release in (self.live, self.previous):
            if release is not None and release.release_id == release_id:
                return release
        return None


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

    def find(self, release_id: str | None) -> LoadedRelease | Unavailable:
        """Return a release that is held; else say which one is live here, and go and get it.

        The other half of an answer names what it holds: that may be a release to which the change
        has not come here yet, or one that this replica, started later, never had. One that cannot
        be loaded is tried again at the next `change`, not at every request.
        """
        release = self.held.get(release_id)
        if release is not None:
            return release
        is_busy = self._one_refresh.locked()
        if self._registry is not None and not is_busy and release_id not in self._unloadable:
            self._background = asyncio.create_task(self._catch_up(release_id))
        live = self.held.live
        return Unavailable(release_id, None if live is None else live.release_id)

    def state(self) -> ReplicaState:
        """Return what this replica holds and refuses."""
        live, previous = self.held.live, self.held.previous
        return ReplicaState(
            None if live is None else live.release_id,
            None if previous is None else previous.release_id, self._change, self._refusal,
        )

    async def _catch_up(self, release_id: str | None) -> None:
        """Look at `live` again; then hold this release beside it, if it is another."""
        await self._refresh(self._change)
        if release_id is None or release_id in self._unloadable:
            return
        async with self._one_refresh:
            live = self.held.live
            if live is not None and self.held.get(release_id) is None:
                self.held = Held(live)
                try:
                    self.held = Held(live, await self._loaded(release_id))
                except Exception as error:  # noqa: BLE001  the live one goes on
                    log.error("release %r, which the other half holds: %s", release_id, error)

    async def _refresh(self, change: int) -> None:
        """Load what `live` says; if that fails, keep what is held, else try the previous one."""
        async with self._one_refresh:
            assert self._registry is not None
            try:
                wanted, previous = await asyncio.to_thread(self._registry.live)
            except (EngineError, OSError) as error:
                self._refuse("", error)
                self._change = change
                return
            await self._hold(wanted, previous)
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

    async def _take(self, release_id: str) -> bool:
        """Make a release the live one here; tell whether it is."""
        held = self.held
        if held.live is not None and held.live.release_id == release_id:
            return True
        ready = held.get(release_id)
        if ready is None:
            # At most two in memory: the older one goes before the new one comes.
            self.held = Held(held.live)
            try:
                ready = await self._loaded(release_id)
            except Exception as error:  # noqa: BLE001  whatever it is, the old one goes on
                self._refuse(release_id, error)
                return False
        self.held = Held(ready, held.live)
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
