"""Golden requests: made-up requests, and what a release answered to them where it was made.

    golden.json   [{"items", "ratings", "labels", "timestamps_s", "fields", "candidates", "crm",
                    "llm", "score"}]

Checksums tell that the files are the same; these tell that they still mean the same: under another
version of a library, on another device, with another kernel. Who loads a release asks them again
and refuses it where an answer differs by more than rounding. Nobody's data is in them: histories
are of popular items, fields have the values that most users have.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from pydantic import ConfigDict, TypeAdapter, ValidationError

from engine import storage
from engine.errors import ReleaseError, ReleaseFormatError
from engine.recommender.feedback import allowed_labels, rating_of
from engine.recommender.ranking import RankTask, rank
from engine.recommender.release import LoadedRelease
from engine.releases.manifest import faults_of
from engine.types import UNKNOWN, History, IntArray, Profile

FILE = "golden.json"
LENGTHS = (1, 12, 60)
"""Events of the histories, one for each request; the last has a profile. No item stands there
twice: equal events would tie, and ties may fall otherwise on another processor."""
CANDIDATES = 5
TOLERANCES = {"crm": 0.02, "llm": 0.25}
"""How far a logit may be off: for the language model about three times what three MovieLens-100K
banks differed by with the base model's weights in bfloat16 and in float32 (0.05 to 0.09)."""


@dataclass(frozen=True, slots=True)
class GoldenRequest:
    """One request and its answer; scores are logits, in the order of the candidates."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    items: Sequence[str]
    """The history, oldest first."""
    ratings: Sequence[float]
    labels: Sequence[int]
    timestamps_s: Sequence[int]
    fields: Mapping[str, Sequence[str]]
    """The user's profile."""
    candidates: Sequence[str]
    crm: Sequence[float]
    llm: Sequence[float] | None
    """None where no prompt could be built."""
    score: Sequence[float]
    """Final."""

    def scores(self, *, with_llm: bool) -> dict[str, Sequence[float]]:
        """Return the scores by name: those that a release with or without its language model
        gives.
        """
        if self.llm is None:
            return {"crm": self.crm, "score": self.score}
        return {"crm": self.crm, "llm": self.llm, "score": self.score} if with_llm else {
            "crm": self.crm
        }


GOLDEN = TypeAdapter(list[GoldenRequest])


def make_golden(release: LoadedRelease, end_s: int) -> list[GoldenRequest]:
    """Return requests as of a time (Unix, seconds), answered by a release.

    Raises ReleaseError where a score is not finite.
    """
    popular = _popular(release)
    profiles = [Profile()] * (len(LENGTHS) - 1) + [_frequent_profile(release)]
    tasks = [
        _task(_history(release, popular, length, end_s), profile, popular[:CANDIDATES])
        for length, profile in zip(LENGTHS, profiles, strict=True)
    ]
    return [
        _request(release, task, scores)
        for task, scores in zip(tasks, _scores(release, tasks), strict=True)
    ]


def check_golden(release: LoadedRelease, folder: str) -> None:
    """Ask a release the golden requests of its folder; one that was made before there were any has
    none.

    Raises ReleaseError where an answer differs. Without the language model its scores are not
    compared.
    """
    uri = storage.join(folder, FILE)
    if not storage.exists(uri):
        return
    try:
        requests = GOLDEN.validate_python(storage.read_json(uri))
    except ValidationError as error:
        raise ReleaseFormatError(f"{uri} is not of this version: {faults_of(error)}") from error
    found = _scores(release, [_task_of(release, request) for request in requests])
    for number, (request, scores) in enumerate(zip(requests, found, strict=True)):
        expected = request.scores(with_llm=release.language is not None)
        for name, values in expected.items():
            _compare(release, number, name, values, scores.get(name))


def _compare(
    release: LoadedRelease, number: int, name: str, expected: Sequence[float],
    found: Sequence[float] | None,
) -> None:
    furthest = np.inf if found is None else np.max(np.abs(np.subtract(found, expected)))
    if not furthest <= _tolerances(release)[name]:      # NaN, too
        raise ReleaseError(
            f"release {release.release_id!r} answers its golden request {number} otherwise here "
            f"than where it was made: {name} logits are {_shown(found)}, not {_shown(expected)}"
        )


def _tolerances(release: LoadedRelease) -> dict[str, float]:
    """Return how far each score may be off; a final one as far as its parts."""
    fusion = release.fusion
    fused = fusion.crm_weight * TOLERANCES["crm"] + fusion.llm_weight * TOLERANCES["llm"]
    return {**TOLERANCES, "score": 1e-3 + max(fused, fusion.crm.slope * TOLERANCES["crm"])}


def _scores(release: LoadedRelease, tasks: Sequence[RankTask]) -> list[dict[str, list[float]]]:
    """Return the scores of each task's candidates in their order, by name; no "llm" where the
    language model did not answer.
    """
    found = []
    for task, ranking in zip(tasks, rank(release, tasks), strict=True):
        by_id = {item.item_id: item for item in ranking.items}
        items = [by_id[release.catalogue.item_ids[each]] for each in task.candidates]
        scores: dict[str, list[float | None]] = {
            "crm": [item.crm_score for item in items], "llm": [item.llm_score for item in items],
            "score": [item.score for item in items],
        }
        found.append({
            name: [each for each in values if each is not None]
            for name, values in scores.items() if None not in values
        })
    return found


def _request(
    release: LoadedRelease, task: RankTask, scores: Mapping[str, Sequence[float]]
) -> GoldenRequest:
    history, ids = task.history, release.catalogue.item_ids
    if not all(np.isfinite(values).all() for values in scores.values()):
        raise ReleaseError(
            f"release {release.release_id!r} answers a history of {len(history)} popular items "
            f"with {dict(scores)}"
        )
    return GoldenRequest(
        [ids[item] for item in history.items], history.ratings.tolist(), history.labels.tolist(),
        history.timestamps_s.tolist(), dict(task.profile.fields or {}),
        [ids[item] for item in task.candidates],
        scores["crm"], scores.get("llm"), scores["score"],
    )


def _task_of(release: LoadedRelease, request: GoldenRequest) -> RankTask:
    index_of = release.catalogue.index_of
    history = History(
        np.array([index_of(item) for item in request.items], np.int32),
        np.array(request.ratings, np.float32), np.array(request.labels, np.int8),
        np.array(request.timestamps_s, np.int64),
    )
    candidates = np.array([index_of(item) for item in request.candidates], np.int32)
    fields = {                                  # in the order in which prompts name them
        name: request.fields[name] for name in release.source.user_fields if name in request.fields
    }
    return _task(history, Profile("", fields or None), candidates)


def _task(history: History, profile: Profile, candidates: IntArray) -> RankTask:
    return RankTask(profile, history, candidates, len(candidates), len(candidates))


def _popular(release: LoadedRelease) -> IntArray:
    """Return the items, those with most events first."""
    order = np.argsort(-release.popularity.events, kind="stable")
    return np.asarray(order[order != UNKNOWN], np.int32)


def _history(
    release: LoadedRelease, popular: IntArray, length: int, end_s: int
) -> History:
    """Return an hourly event of up to `length` popular items, the labels in turn."""
    others = popular[CANDIDATES:] if len(popular) > CANDIDATES else popular
    items = others[:length]
    length = len(items)
    labels = np.resize(allowed_labels(release.source)[::-1], length)
    ratings = [rating_of(release.source, None, int(label)) for label in labels]
    times_s = end_s - 3600 * np.arange(length, 0, -1)
    return History(
        items, np.array(ratings, np.float32), labels.astype(np.int8), times_s.astype(np.int64)
    )


def _frequent_profile(release: LoadedRelease) -> Profile:
    """Return the most frequent value of each field."""
    return Profile("", {
        name: release.profiles.most_frequent(name) for name in release.source.user_fields
    })


def _shown(scores: Sequence[float] | None) -> str:
    if scores is None:
        return "missing"
    return "[" + ", ".join(f"{score:.3f}" for score in scores) + "]"
