"""ReleaseHolder without Ray: what a replica holds."""

import asyncio
import threading
from dataclasses import dataclass, field
from typing import Any
from unittest.mock import Mock

import pytest

from engine import storage
from engine.errors import ChecksumError, ConfigError
from engine.releases.experiment import Experiment
from engine.releases.registry import Registry
from engine.serving.releases import ReleaseHolder, Unavailable


@dataclass
class FakeRelease:
    release_id: str


@dataclass
class FakeRegistry:
    """Loads by name; those in `broken` do not verify."""

    registry: Registry
    broken: set[str] = field(default_factory=set)
    loaded: list[str] = field(default_factory=list)
    gate: asyncio.Event | None = None

    def load(self, _registry: Registry, release_id: str) -> Any:
        self.loaded.append(release_id)
        if release_id in self.broken:
            raise ChecksumError(f"{release_id}/bank.safetensors differs")
        return FakeRelease(release_id)

    def go_live(
        self, release_id: str, previous_id: str | None = None,
        experiment: Experiment | None = None,
    ) -> None:
        storage.write_json(f"{self.registry.root}/live.json", {
            "release_id": release_id, "previous_id": previous_id,
            "experiment": None if experiment is None else experiment.to_json(),
        })

    def config(self, change: int) -> dict[str, object]:
        return {"registry": self.registry.root, "change": change}


@pytest.fixture
def fake(tmp_path: Any) -> FakeRegistry:
    return FakeRegistry(Registry(str(tmp_path)))


async def settle(holder: ReleaseHolder) -> None:
    if holder._background is not None:
        await holder._background


async def follow(fake: FakeRegistry, holder: ReleaseHolder, change: int, *live: Any) -> None:
    """Let a holder follow a change of what is live: release, the one before it, experiment."""
    fake.go_live(*live)
    await holder.reconfigure(fake.config(change))
    await settle(holder)


def live_id(holder: ReleaseHolder) -> str | None:
    return holder.state().release_id


def refused(holder: ReleaseHolder) -> list[str]:
    return [each.release_id for each in holder.state().refusals]


def test_the_first_release_is_there_when_the_replica_is_ready(fake: FakeRegistry) -> None:
    async def run() -> None:
        fake.go_live("a")
        holder = ReleaseHolder(fake.load)
        await holder.reconfigure(fake.config(3))
        assert (live_id(holder), holder.state().change) == ("a", 3)

    asyncio.run(run())


def test_a_later_release_loads_while_the_old_one_answers(fake: FakeRegistry) -> None:
    async def run() -> None:
        fake.go_live("a")
        holder = ReleaseHolder(fake.load)
        await holder.reconfigure(fake.config(1))
        fake.go_live("b", "a")
        await holder.reconfigure(fake.config(2))
        assert (live_id(holder), holder.state().change) == ("a", 1)      # returned at once
        await settle(holder)
        state = holder.state()
        assert (state.release_id, state.previous_id, state.change) == ("b", "a", 2)
        assert not isinstance(holder.find("a"), Unavailable)
        assert not isinstance(holder.find(None), Unavailable)

    asyncio.run(run())


def test_a_rollback_needs_no_loading(fake: FakeRegistry) -> None:
    async def run() -> None:
        holder = ReleaseHolder(fake.load)
        for change, (live, previous) in enumerate([("a", None), ("b", "a"), ("a", "b")]):
            await follow(fake, holder, change, live, previous)
        assert (live_id(holder), holder.state().previous_id) == ("a", "b")
        assert fake.loaded == ["a", "b"]

    asyncio.run(run())


def test_what_does_not_verify_is_refused_once_and_the_old_one_stays(fake: FakeRegistry) -> None:
    async def run() -> None:
        fake.go_live("a")
        holder = ReleaseHolder(fake.load)
        await holder.reconfigure(fake.config(1))
        fake.broken.add("b")
        await follow(fake, holder, 2, "b", "a")
        state = holder.state()
        assert (state.release_id, state.change) == ("a", 2)
        [refusal] = state.refusals
        assert refusal.release_id == "b"
        assert "ChecksumError" in refusal.reason
        for _ in range(3):                     # requests for it do not try again and again
            answer = holder.find("b")
            assert answer == Unavailable("b", "a")
            await settle(holder)
        assert fake.loaded == ["a", "b"]
        fake.broken.clear()                    # repaired: the next change tries again
        await holder.reconfigure(fake.config(3))
        await settle(holder)
        assert (live_id(holder), refused(holder)) == ("b", [])

    asyncio.run(run())


def test_a_new_replica_takes_the_previous_release_if_the_live_one_is_broken(
    fake: FakeRegistry,
) -> None:
    async def run() -> None:
        fake.broken.add("b")
        fake.go_live("b", "a")
        holder = ReleaseHolder(fake.load)
        await holder.reconfigure(fake.config(1))
        state = holder.state()
        assert state.release_id == "a"
        assert refused(holder) == ["b"]

    asyncio.run(run())


def test_a_replica_starts_without_any_release_and_finds_the_first(fake: FakeRegistry) -> None:
    async def run() -> None:
        holder = ReleaseHolder(fake.load)
        await holder.reconfigure(fake.config(1))
        assert holder.find(None) == Unavailable(None, None)
        [refusal] = holder.state().refusals
        assert "no release is live" in refusal.reason
        fake.go_live("a")
        await holder.reconfigure(fake.config(2))
        assert (live_id(holder), refused(holder)) == ("a", [])

    asyncio.run(run())


def test_a_request_for_a_release_not_held_makes_the_replica_look_at_live(
    fake: FakeRegistry,
) -> None:
    async def run() -> None:
        fake.go_live("a")
        holder = ReleaseHolder(fake.load)
        await holder.reconfigure(fake.config(1))
        fake.go_live("b", "a")                 # the change has not come here yet
        assert holder.find("b") == Unavailable("b", "a")
        await settle(holder)
        found = holder.find("b")
        assert not isinstance(found, Unavailable)
        assert found.release_id == "b"

    asyncio.run(run())


def test_a_replica_gets_the_release_that_the_other_half_holds(fake: FakeRegistry) -> None:
    """The scorer refused b and holds a; a retriever that starts now knows of b alone."""
    async def run() -> None:
        fake.go_live("b", "a")
        holder = ReleaseHolder(fake.load)
        await holder.reconfigure(fake.config(2))
        assert holder.find("a") == Unavailable("a", "b")
        await settle(holder)
        found = holder.find("a")
        assert not isinstance(found, Unavailable)
        assert found.release_id == "a"
        state = holder.state()
        assert (state.release_id, state.previous_id, state.refusals) == ("b", "a", [])
        fake.broken.add("x")
        for _ in range(3):                     # what cannot be had is not tried at every request
            assert holder.find("x") == Unavailable("x", "b")
            await settle(holder)
        assert fake.loaded == ["b", "a", "x"]
        assert refused(holder) == []

    asyncio.run(run())


def test_never_more_than_two_releases_are_held(fake: FakeRegistry) -> None:
    held_at_load: list[int] = []

    async def run() -> None:
        holder = ReleaseHolder(lambda registry, name: load(registry, name))

        def load(registry: Registry, name: str) -> Any:
            held = holder.held
            held_at_load.append((held.live is not None) + (held.previous is not None))
            return fake.load(registry, name)

        previous = None
        for change, name in enumerate("abcd"):
            await follow(fake, holder, change, name, previous)
            previous = name

    asyncio.run(run())
    assert held_at_load == [0, 1, 1, 1]


def test_a_replica_that_found_nothing_tries_again_at_the_next_request(fake: FakeRegistry) -> None:
    async def run() -> None:
        fake.broken |= {"a", "b"}               # the object store is away
        fake.go_live("b", "a")
        holder = ReleaseHolder(fake.load)
        await holder.reconfigure(fake.config(1))
        assert holder.find(None) == Unavailable(None, None)
        await settle(holder)
        fake.broken.clear()
        assert holder.find(None) == Unavailable(None, None)
        await settle(holder)
        assert (live_id(holder), refused(holder)) == ("b", [])

    asyncio.run(run())


def test_what_nobody_expected_ends_the_replica(fake: FakeRegistry) -> None:
    async def run() -> None:
        fake.go_live("a")
        holder = ReleaseHolder(fake.load)
        holder._follow = Mock(side_effect=ZeroDivisionError)    # type: ignore[method-assign]
        holder._take = Mock(side_effect=ZeroDivisionError)      # type: ignore[method-assign]
        with pytest.raises(ZeroDivisionError):
            await holder.reconfigure(fake.config(1))

    asyncio.run(run())


EVERYBODY = Experiment("t", 1.0, False, 5)
SHADOW = Experiment("t", 1.0, True, 5)


def answering(holder: ReleaseHolder, user_id: str | None) -> str:
    found = holder.find(None, user_id)
    assert not isinstance(found, Unavailable)
    return found.release_id


def test_a_challenger_answers_its_users_and_nobody_else(fake: FakeRegistry) -> None:
    half = Experiment("t", 0.5, False, 5)
    users = [str(number) for number in range(40)]

    async def run() -> None:
        holder = ReleaseHolder(fake.load)
        await follow(fake, holder, 1, "a", None, half)
        assert holder.state().experiment == half
        found = {user: answering(holder, user) for user in users}
        assert found == {user: "t" if half.includes(user) else "a" for user in users}
        assert set(found.values()) == {"a", "t"}
        assert answering(holder, None) == "a"                       # a guest
        assert not isinstance(holder.find("a", users[0]), Unavailable)   # by name: both for all
        assert not isinstance(holder.find("t", None), Unavailable)
        assert [holder.held.shadow_of(user) for user in users] == [None] * 40
        await follow(fake, holder, 2, "a")
        assert holder.state().experiment is None
        assert {answering(holder, user) for user in users} == {"a"}
        assert fake.loaded == ["a", "t"]

    asyncio.run(run())


def test_a_shadow_answers_nobody(fake: FakeRegistry) -> None:
    async def run() -> None:
        holder = ReleaseHolder(fake.load)
        await follow(fake, holder, 1, "a", None, SHADOW)
        assert answering(holder, "ann") == "a"
        assert holder.held.shadow_of("ann") == "t"
        assert holder.held.shadow_of(None) is None
        assert not isinstance(holder.find("t"), Unavailable)

    asyncio.run(run())


def test_a_challenger_that_cannot_be_had_leaves_its_users_to_the_live_one(
    fake: FakeRegistry,
) -> None:
    async def run() -> None:
        fake.broken.add("t")
        holder = ReleaseHolder(fake.load)
        await follow(fake, holder, 1, "a", None, EVERYBODY)
        state = holder.state()
        assert (state.release_id, state.experiment, state.change) == ("a", None, 1)
        assert refused(holder) == ["t"]
        assert answering(holder, "ann") == "a"
        for _ in range(3):                      # the other half holds it
            assert holder.find("t") == Unavailable("t", "a")
            await settle(holder)
        assert fake.loaded == ["a", "t"]
        # What is refused hinders no promotion.
        await follow(fake, holder, 2, "b", "a", EVERYBODY)
        assert holder.state().release_id == "b"
        await follow(fake, holder, 3, "b", "a")
        assert refused(holder) == []

    asyncio.run(run())


def test_refusals_of_the_live_release_and_of_the_challenger_are_both_told(
    fake: FakeRegistry,
) -> None:
    async def run() -> None:
        holder = ReleaseHolder(fake.load)
        await follow(fake, holder, 1, "a")
        fake.broken |= {"b", "t"}
        await follow(fake, holder, 2, "b", "a", EVERYBODY)
        assert refused(holder) == ["b", "t"]
        assert answering(holder, "ann") == "a"

    asyncio.run(run())


def test_a_challenger_is_promoted_and_rolled_back_without_loading(
    fake: FakeRegistry,
) -> None:
    async def run() -> None:
        holder = ReleaseHolder(fake.load)
        await follow(fake, holder, 1, "a", None, EVERYBODY)
        for change, (live, previous) in enumerate([("t", "a"), ("a", "t")], start=2):
            await follow(fake, holder, change, live, previous)
            state = holder.state()
            assert (state.release_id, state.previous_id, state.experiment) == (live, previous, None)
        await follow(fake, holder, 4, "a", "t", EVERYBODY)       # against what was live
        assert answering(holder, "ann") == "t"
        assert fake.loaded == ["a", "t"]

    asyncio.run(run())


def test_an_experiment_goes_on_beside_a_new_live_release(fake: FakeRegistry) -> None:
    async def run() -> None:
        holder = ReleaseHolder(fake.load)
        await follow(fake, holder, 1, "a", None, EVERYBODY)
        await follow(fake, holder, 2, "b", "a", EVERYBODY)
        state = holder.state()
        assert (state.release_id, state.previous_id) == ("b", "a")
        assert (answering(holder, "ann"), answering(holder, None)) == ("t", "b")
        other = Experiment("u", 1.0, False, 6)
        await follow(fake, holder, 3, "b", "a", other)
        assert answering(holder, "ann") == "u"
        assert isinstance(holder.find("t"), Unavailable)        # at most three are held
        assert fake.loaded == ["a", "t", "b", "u"]

    asyncio.run(run())


def test_a_replica_that_hears_of_an_experiment_by_a_request_follows_it(
    fake: FakeRegistry,
) -> None:
    async def run() -> None:
        holder = ReleaseHolder(fake.load)
        await follow(fake, holder, 1, "a")
        fake.go_live("a", None, EVERYBODY)      # the change has not come here yet
        assert holder.find("t") == Unavailable("t", "a")
        await settle(holder)
        assert answering(holder, "ann") == "t"
        assert fake.loaded == ["a", "t"]

    asyncio.run(run())


def test_a_replica_is_ready_before_its_challenger_is_loaded(fake: FakeRegistry) -> None:
    async def run() -> None:
        fake.go_live("a", None, EVERYBODY)
        may_load = threading.Event()

        def load(registry: Registry, release_id: str) -> Any:
            if release_id == "t":
                assert may_load.wait(30)
            return fake.load(registry, release_id)

        holder = ReleaseHolder(load)
        await holder.reconfigure(fake.config(1))
        assert answering(holder, "ann") == "a"
        assert holder.state().experiment is None
        may_load.set()
        await settle(holder)
        assert answering(holder, "ann") == "t"
        assert holder.state().change == 1

    asyncio.run(run())


def test_a_late_request_does_not_call_a_challenger_back(fake: FakeRegistry) -> None:
    async def run() -> None:
        holder = ReleaseHolder(fake.load)
        for change, (live, previous, experiment) in enumerate([
            ("p", None, None), ("a", "p", None), ("a", "p", SHADOW), ("a", "p", None),
        ]):
            await follow(fake, holder, change, live, previous, experiment)
        assert holder.find("t") == Unavailable("t", "a")        # it was on its way
        await settle(holder)
        assert holder.state().previous_id == "p"                # a rollback loads nothing
        assert fake.loaded == ["p", "a", "t"]
        await follow(fake, holder, 9, "a", "p", SHADOW)
        assert holder.held.shadow_of("ann") == "t"

    asyncio.run(run())


def test_a_promoted_challenger_comes_back_after_it_left_memory(fake: FakeRegistry) -> None:
    async def run() -> None:
        holder = ReleaseHolder(fake.load)
        await follow(fake, holder, 1, "a", None, EVERYBODY)
        await follow(fake, holder, 2, "t", "a")
        for live, previous in (("b", "t"), ("c", "b"), ("t", "c")):
            fake.go_live(live, previous)        # no change has come here yet
            assert isinstance(holder.find(live), Unavailable)
            await settle(holder)
            assert live_id(holder) == live
        assert fake.loaded == ["a", "t", "b", "c", "t"]

    asyncio.run(run())


def test_a_refusal_stays_until_it_is_over(fake: FakeRegistry) -> None:
    async def run() -> None:
        fake.broken.add("t")
        holder = ReleaseHolder(fake.load)
        await follow(fake, holder, 1, "a", "p", EVERYBODY)
        assert isinstance(holder.find("p"), Unavailable)        # the other half holds it
        await settle(holder)
        assert not isinstance(holder.find("p"), Unavailable)
        assert refused(holder) == ["t"]
        fake.broken.clear()
        await holder.reconfigure(fake.config(2))
        await settle(holder)
        assert (refused(holder), answering(holder, "ann")) == ([], "t")

    asyncio.run(run())


@pytest.mark.parametrize("config", [{}, {"registry": "x"}, {"registry": 3, "change": 1}])
def test_a_wrong_user_config_fails_by_name(fake: FakeRegistry, config: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match="registry"):
        asyncio.run(ReleaseHolder(fake.load).reconfigure(config))
