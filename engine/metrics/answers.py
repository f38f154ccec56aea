"""What releases answered, measured by what users did next: requests -> sums by user -> ratios.

Every metric is a ratio of sums over users. Users are drawn from all who had an answer of any of the
releases, the same draws for each release: so a difference is right where the releases answered
different users (A/B) and where they answered the same requests (a shadow). Where there are shadows,
it is taken over the requests that both answered: which of them got a shadow is no accident.

Letters here: U users, R releases, S sums, D draws.
"""

from array import array
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np

from engine.metrics import ranking
from engine.metrics.estimates import Estimate, differences, ratios_of_sums
from engine.metrics.ranking import Queries
from engine.types import AnsweredRequest, AnswerList, AnswerMode, FloatArray, Outcome

LISTS = ("ndcg@10", "recall@10", "mrr")
SUMS = ("answers", "shadows", "liked", "disliked", "hits", "followed", *LISTS, *AnswerMode)
"""Sums over a user's answers; followed: those that at least one liked event followed."""
RATIOS: Mapping[str, tuple[str, str]] = {
    "liked": ("liked", "answers"), "disliked": ("disliked", "answers"), "hit": ("hits", "answers"),
    **{name: (name, "followed") for name in LISTS},
    **{mode.value: (mode.value, "answers") for mode in AnswerMode},
}
"""Metric -> what is divided by what."""
OVERLAP = f"overlap@{ranking.SHOWN}"


@dataclass(frozen=True, slots=True)
class AnswerSums:
    """Sums over each user's answers."""

    release_ids: Sequence[str]
    sums_URS: FloatArray
    """Every user has an answer of at least one release."""
    paired_URS: FloatArray
    """Over the requests that all releases answered alone."""
    common_U: FloatArray
    """Shares of common items, summed over the requests that all releases answered."""
    shared_U: FloatArray
    """These requests."""
    orphans: Sequence[int]
    """For each release, answers left out as nobody knows what followed them."""

    def total(self, release: int, name: str) -> int:
        """Return one of SUMS of a release."""
        return int(self.sums_URS[:, release, SUMS.index(name)].sum())

    def num_paired(self) -> int:
        """Return how many requests all releases answered."""
        return int(self.paired_URS[:, 0, SUMS.index("answers")].sum())

    def num_users(self, release: int) -> int:
        """Return how many users a release answered."""
        return int((self.sums_URS[:, release, SUMS.index("answers")] > 0).sum())


def sum_answers(requests: Iterable[AnsweredRequest], release_ids: Sequence[str]) -> AnswerSums:
    """Sum up the answers of these releases; requests of one user stand together.

    A request that all of several releases answered counts for the overlap if any of them listed an
    item.
    """
    numbers = {release_id: number for number, release_id in enumerate(release_ids)}
    shape = (len(release_ids), len(SUMS))
    sums, paired, common, shared = array("d"), array("d"), array("d"), array("d")
    orphans = [0] * len(release_ids)
    for _, of_user in groupby(requests, key=lambda request: request.user_id):
        sums_RS, paired_RS, shares = np.zeros(shape), np.zeros(shape), []
        for request in of_user:
            if request.outcome is None:
                for answer in request.answers:
                    orphans[numbers[answer.release_id]] += 1
                continue
            found_RS = np.zeros(shape)
            for answer in request.answers:
                found_RS[numbers[answer.release_id]] += _sums_of(answer, request.outcome)
            sums_RS += found_RS
            if found_RS[:, SUMS.index("answers")].all():
                paired_RS += found_RS
            shares += _common_share(request.answers, len(release_ids))
        if sums_RS.any():
            sums.frombytes(sums_RS.tobytes())
            paired.frombytes(paired_RS.tobytes())
            common.append(sum(shares))
            shared.append(len(shares))
    return AnswerSums(
        release_ids, np.array(sums).reshape(-1, *shape), np.array(paired).reshape(-1, *shape),
        np.array(common), np.array(shared), orphans,
    )


def measure(sums_US: FloatArray, *, num_draws: int, seed: int) -> dict[str, Estimate]:
    """Return every metric of RATIOS with its draws over users.

    Two releases measured on the same users with one seed are paired: subtract their estimates.
    """
    tops_UM, bottoms_UM = (
        sums_US[:, [SUMS.index(pair[side]) for pair in RATIOS.values()]] for side in (0, 1)
    )
    estimates = ratios_of_sums(tops_UM, bottoms_UM, num_draws=num_draws, seed=seed)
    return dict(zip(RATIOS, estimates, strict=True))


def compare(sums: AnswerSums, *, num_draws: int, seed: int) -> dict[str, Any]:
    """Return the JSON form of all metrics: by release, and of two the difference (first - second)
    and the overlap.
    """
    measured = _measured(sums.sums_URS, num_draws=num_draws, seed=seed)
    releases = [
        {
            "release_id": release_id, "num_answers": sums.total(release, "answers"),
            "num_users": sums.num_users(release), "num_shadows": sums.total(release, "shadows"),
            "num_orphans": sums.orphans[release],
            "num_followed": sums.total(release, "followed"), "metrics": _to_json(measured[release]),
        }
        for release, release_id in enumerate(sums.release_ids)
    ]
    difference = overlap = None
    if len(measured) == 2:
        first, second = sums.release_ids
        has_shadows = any(sums.total(release, "shadows") for release in (0, 1))
        if has_shadows:
            measured = _measured(sums.paired_URS, num_draws=num_draws, seed=seed)
        intervals = differences(*measured)
        difference = {
            "first": first, "second": second,
            "num_requests": sums.num_paired() if has_shadows else None,
            "metrics": {name: each and each.to_json() for name, each in intervals.items()},
        }
        overlap = _overlap(sums, num_draws=num_draws, seed=seed)
    return {
        "num_users": len(sums.sums_URS), "num_draws": num_draws, "releases": releases,
        "difference": difference, "overlap": overlap,
    }


def _measured(sums_URS: FloatArray, *, num_draws: int, seed: int) -> list[dict[str, Estimate]]:
    """Return the metrics of each release."""
    return [
        measure(np.ascontiguousarray(sums_URS[:, release]), num_draws=num_draws, seed=seed)
        for release in range(sums_URS.shape[1])
    ]


def _sums_of(answer: AnswerList, outcome: Outcome) -> FloatArray:
    """Return what one answer adds to each of SUMS [S]."""
    liked = set(outcome.liked)
    places = [item in liked for item in answer.item_ids]
    return np.array([
        1, answer.is_shadow, len(outcome.liked), outcome.num_disliked, any(places), bool(liked),
        *_list_metrics(places, len(liked)), *(answer.mode == mode for mode in AnswerMode),
    ], np.float64)


def _list_metrics(places: Sequence[bool], num_liked: int) -> tuple[float, ...]:
    """Return LISTS of a list, given which of its places hold an item that was liked."""
    if not any(places):
        return (0.0,) * len(LISTS)
    query = Queries(
        np.zeros(1, np.int64), 1, np.arange(1, len(places) + 1)[None], np.array([places]),
        np.array([num_liked]),
    )
    values = ranking.ndcg(query), ranking.recall(query, 10), ranking.reciprocal_rank(query)
    return tuple(float(each[0]) for each in values)


def _common_share(answers: Sequence[AnswerList], num_releases: int) -> list[float]:
    """Return the share of common items among the first of two lists; nothing where it has none."""
    shown = {answer.release_id: set(answer.item_ids[: ranking.SHOWN]) for answer in answers}
    longest = max(map(len, shown.values()), default=0)
    if num_releases < 2 or len(shown) < num_releases or not longest:
        return []
    return [len(set.intersection(*shown.values())) / longest]


def _overlap(sums: AnswerSums, *, num_draws: int, seed: int) -> dict[str, Any] | None:
    """Return the mean share of common items; None if no request had an answer of both."""
    if not sums.shared_U.any():
        return None
    [estimate] = ratios_of_sums(
        sums.common_U[:, None], sums.shared_U[:, None], num_draws=num_draws, seed=seed
    )
    return {"num_requests": int(sums.shared_U.sum()), **_to_json({OVERLAP: estimate})}


def _to_json(estimates: Mapping[str, Estimate]) -> dict[str, Any]:
    intervals = {name: estimate.interval() for name, estimate in estimates.items()}
    return {name: each and each.to_json() for name, each in intervals.items()}
