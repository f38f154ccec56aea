"""What Prometheus reads of the service, beside what Ray Serve exports (requests, errors, queues).

    ingress              lifelora_{answers,shadows,events,items,stage_ms,gate_entropy,
                                   impressions_lost,shadows_lost}
    scorer               lifelora_batch_requests, lifelora_prefix_{hits,misses,bytes}
    retriever, scorer    lifelora_release, lifelora_release_refused

Ray puts `ray_` before each name and adds deployment, replica and application. Each class is made
inside the replica that it belongs to.
"""

from collections import Counter as Counts
from collections.abc import Callable, Iterable, Mapping

from ray.serve.metrics import Counter, Gauge, Histogram

from engine.recommender.prefix_cache import PrefixCache
from engine.recommender.ranking import Ranking
from engine.serving.periodic import Periodic
from engine.serving.releases import ReleaseHolder
from engine.state.events import EventState
from engine.state.items import ItemState

REFRESH_S = 2.0
"""Less than Ray's report interval, 10 s by default."""
STAGE_MS = [1.0, 2, 5, 10, 20, 50, 100, 200, 500, 1_000, 2_000, 5_000, 10_000, 30_000]
BATCH_REQUESTS = [1.0, 2, 4, 8, 16, 32]
SHARES = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 1]


def shown(*shows: Callable[[], None]) -> Periodic:
    """Return what shows gauges again and again: Ray drops those not set for two of its reports."""

    async def show() -> None:
        for each in shows:
            each()

    return Periodic(REFRESH_S, show)


class AnswerMetrics:
    """Answers and events of one ingress."""

    def __init__(self) -> None:
        self._answers = Counter(
            "lifelora_answers", "Answers by mode and release.",
            ("mode", "release_id"),     # type: ignore[arg-type]  # any number, Ray says one
        )
        self._stage_ms = Histogram(
            "lifelora_stage_ms", "Wall time of an answer's stages; the scorer's are of its batch.",
            STAGE_MS, ("stage",),
        )
        self._gate_entropy = Histogram(
            "lifelora_gate_entropy", "Entropy of an answer's gates: 1 is an even mix.", SHARES,
        )
        self._events = Counter("lifelora_events", "Events sent, by status.", ("status",))
        self._items = Counter("lifelora_items", "Items sent, by status.", ("status",))
        self._lost = Counter("lifelora_impressions_lost", "Answers that could not be stored.")
        self._shadows = Counter(
            "lifelora_shadows", "Answers for the record alone, by mode and release.",
            ("mode", "release_id"),     # type: ignore[arg-type]
        )
        self._lost_shadows = Counter(
            "lifelora_shadows_lost", "Answers for the record alone that were not made."
        )

    def count_answer(self, ranking: Ranking, stage_ms: Mapping[str, float]) -> None:
        """Count one answer."""
        self._answers.inc(tags={"mode": ranking.mode, "release_id": ranking.release_id})
        for stage, milliseconds in stage_ms.items():
            self._stage_ms.observe(milliseconds, {"stage": stage})
        if ranking.gate_entropy is not None:
            self._gate_entropy.observe(ranking.gate_entropy)

    def count_events(self, states: Iterable[EventState]) -> None:
        """Count the events of one request."""
        _count(self._events, states)

    def count_items(self, states: Iterable[ItemState]) -> None:
        """Count the items of one request."""
        _count(self._items, states)

    def count_lost_impression(self) -> None:
        """Count an answer that was given but not stored."""
        self._lost.inc()

    def count_shadow(self, ranking: Ranking) -> None:
        """Count an answer that was made for the record alone."""
        self._shadows.inc(tags={"mode": ranking.mode, "release_id": ranking.release_id})

    def count_lost_shadow(self) -> None:
        """Count one that should have been made and was not."""
        self._lost_shadows.inc()


def _count(counter: Counter, states: Iterable[str]) -> None:
    for state, number in Counts(states).items():
        counter.inc(number, {"status": state})


class BatchMetrics:
    """Batches and prefixes of one scorer."""

    def __init__(self, cache: PrefixCache) -> None:
        self._cache = cache
        self._requests = Histogram(
            "lifelora_batch_requests", "Requests of one forward pass.", BATCH_REQUESTS
        )
        self._hits = Counter("lifelora_prefix_hits", "Prefixes found in the cache.")
        self._misses = Counter("lifelora_prefix_misses", "Prefixes that were read.")
        self._bytes = Gauge("lifelora_prefix_bytes", "Memory of the prefixes kept.")
        self._counted = (0, 0)

    def count_batch(self, requests: int) -> None:
        """Count a batch, and what it found in the cache."""
        self._requests.observe(requests)
        (hits, misses), found = self._counted, (self._cache.hits, self._cache.misses)
        if found[0] > hits:
            self._hits.inc(found[0] - hits)
        if found[1] > misses:
            self._misses.inc(found[1] - misses)
        self._counted = found

    def show(self) -> None:
        """Show the memory in use."""
        self._bytes.set(self._cache.num_bytes)


class ReleaseMetrics:
    """What one replica holds and refuses."""

    def __init__(self, releases: ReleaseHolder) -> None:
        self._releases = releases
        self._release = Gauge(
            "lifelora_release", "1 for the releases that a replica holds.",
            ("release_id", "state"),    # type: ignore[arg-type]
        )
        self._refused = Gauge(
            "lifelora_release_refused", "1 while a replica refuses a release.", ("release_id",)
        )
        self._shown: set[tuple[str, str]] = set()
        self._refusals: set[str] = set()

    def show(self) -> None:
        """Show the state of now; what was shown before and is no longer so becomes 0."""
        state = self._releases.state()
        challenger = None if state.experiment is None else state.experiment.release_id
        named = {
            "live": state.release_id, "previous": state.previous_id, "challenger": challenger,
        }
        held = {(found, name) for name, found in named.items() if found is not None}
        for release_id, name in held | self._shown:
            is_held = (release_id, name) in held
            self._release.set(float(is_held), {"release_id": release_id, "state": name})
        refused = {each.release_id for each in state.refusals}
        for release_id in refused | self._refusals:
            self._refused.set(float(release_id in refused), {"release_id": release_id})
        self._shown, self._refusals = held, refused
