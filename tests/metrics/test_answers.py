"""Metrics of answers by what followed them: an example by hand, and a plain bootstrap."""

import numpy as np
import pytest

from engine.metrics.answers import RATIOS, SUMS, compare, measure, sum_answers
from engine.types import AnsweredRequest, AnswerList, AnswerMode, Outcome

FULL, CRM, POPULAR = AnswerMode.FULL, AnswerMode.CRM, AnswerMode.POPULAR
DRAWS = {"num_draws": 200, "seed": 3}


def asked(user_id, outcome, **lists):
    """Return a request; `a="xyz"` is release a's list, best first."""
    found = [AnswerList(release_id, FULL, list(items)) for release_id, items in lists.items()]
    return AnsweredRequest(user_id, found, outcome)


def test_an_example_by_hand():
    requests = [
        asked("ann", Outcome(["y", "y", "q"], 1), a="xyz"),
        AnsweredRequest("ann", [AnswerList("a", CRM, ["x"])], Outcome([], 2)),
        AnsweredRequest("ann", [AnswerList("a", POPULAR, [])], Outcome(["x"], 0)),
        asked("bob", Outcome(["z"], 0), a="z"),
    ]
    sums = sum_answers(requests, ["a"])
    report = compare(sums, **DRAWS)
    [release] = report["releases"]
    ideal = 1 + 1 / np.log2(3)                          # two liked items at the first two places
    expected = {
        "liked": 5 / 4, "disliked": 3 / 4, "hit": 2 / 4, "full": 2 / 4, "crm": 1 / 4,
        "popular": 1 / 4, "ndcg@10": (1 / np.log2(3) / ideal + 0 + 1) / 3,
        "recall@10": (1 / 2 + 0 + 1) / 3, "mrr": (1 / 2 + 0 + 1) / 3,
    }
    found = {name: interval["value"] for name, interval in release.pop("metrics").items()}
    assert found == pytest.approx(expected)
    assert release == {
        "release_id": "a", "num_answers": 4, "num_users": 2, "num_shadows": 0,
        "num_orphans": 0, "num_followed": 3,
    }
    assert (report["num_users"], report["difference"], report["overlap"]) == (2, None, None)


def test_a_list_is_ranked_to_its_end_and_shown_to_its_tenth_place():
    items = [f"i{place}" for place in range(1, 16)]
    sums = sum_answers([asked("ann", Outcome(["i12"], 0), a=items)], ["a"])
    found = dict(zip(SUMS, sums.sums_URS[0, 0], strict=True))
    assert found["mrr"] == pytest.approx(1 / 12)
    assert (found["hits"], found["ndcg@10"], found["recall@10"]) == (1, 0, 0)


def random_requests(users, *release_ids, seed=0):
    """Return requests that each of the releases answered."""
    rng = np.random.default_rng(seed)
    items = np.array(list("abcdefgh"))
    return [
        AnsweredRequest(
            user,
            [AnswerList(each, rng.choice([FULL, CRM]), rng.permutation(items)[:4].tolist())
             for each in release_ids],
            Outcome(rng.choice(items, rng.integers(0, 3)).tolist(), int(rng.integers(0, 2))),
        ) for user in users for _ in range(rng.integers(1, 5))
    ]


def rows_of(requests, release_id):
    """Return user, top and bottom of every metric, one row for each answer of a release."""
    rows = []
    for request in requests:
        for answer in (each for each in request.answers if each.release_id == release_id):
            liked = set(request.outcome.liked)
            hits = [place for place, item in enumerate(answer.item_ids) if item in liked]
            ideal = sum(1 / np.log2(place + 2) for place in range(len(liked)))
            rows.append((request.user_id, {
                "liked": (len(request.outcome.liked), 1),
                "disliked": (request.outcome.num_disliked, 1), "hit": (bool(hits), 1),
                "ndcg@10": (sum(1 / np.log2(place + 2) for place in hits) / (ideal or 1),
                            bool(liked)),
                "recall@10": (len(hits) / (len(liked) or 1), bool(liked)),
                "mrr": (1 / (min(hits) + 1) if hits else 0, bool(liked)),
                **{mode.value: (answer.mode == mode, 1) for mode in AnswerMode},
            }))
    return rows


def ratio_of_rows(rows, counts, name):
    top, bottom = np.sum([np.multiply(values[name], counts[user]) for user, values in rows], axis=0)
    return top / bottom if bottom else np.nan


@pytest.mark.parametrize("shared", ["nobody", "somebody", "everybody"])
def test_a_difference_is_that_of_a_plain_bootstrap_over_all_users(shared):
    users = [f"u{number:02d}" for number in range(14)]
    first, second = {
        "nobody": (users[:8], users[8:]), "somebody": (users[:9], users[5:]),
        "everybody": (users, users),
    }[shared]
    requests = [*random_requests(first, "a"), *random_requests(second, "b", seed=1)]
    requests.sort(key=lambda request: request.user_id)
    report = compare(sum_answers(requests, ["a", "b"]), **DRAWS)
    rng = np.random.default_rng(DRAWS["seed"])
    draws = [rng.integers(14, size=14) for _ in range(DRAWS["num_draws"])]
    counts = [dict(zip(users, np.bincount(draw, minlength=14), strict=True)) for draw in draws]
    rows = {release_id: rows_of(requests, release_id) for release_id in "ab"}
    for name in RATIOS:
        by_draw = {
            release_id: np.array([ratio_of_rows(each, count, name) for count in counts])
            for release_id, each in rows.items()
        }
        values = {release_id: ratio_of_rows(each, dict.fromkeys(users, 1), name)
                  for release_id, each in rows.items()}
        difference = by_draw["a"] - by_draw["b"]
        low, high = np.nanpercentile(difference, [2.5, 97.5])
        assert report["difference"]["metrics"][name] == pytest.approx(
            {"value": values["a"] - values["b"], "low": low, "high": high}
        ), name
        low, high = np.nanpercentile(by_draw["a"], [2.5, 97.5])
        assert report["releases"][0]["metrics"][name] == pytest.approx(
            {"value": values["a"], "low": low, "high": high}
        ), name
    assert report["overlap"] is None


def test_equal_lists_to_the_same_requests_differ_by_exactly_nothing():
    requests = [
        AnsweredRequest(each.user_id, [
            *each.answers, AnswerList("b", each.answers[0].mode, each.answers[0].item_ids),
        ], each.outcome) for each in random_requests([f"u{n:02d}" for n in range(37)], "a")
    ]
    report = compare(sum_answers(requests, ["a", "b"]), **DRAWS)
    assert set(report["difference"]["metrics"]) == set(RATIOS)
    for interval in report["difference"]["metrics"].values():
        assert interval == {"value": 0, "low": 0, "high": 0}
    assert report["overlap"] == {
        "num_requests": len(requests), "overlap@10": {"value": 1, "low": 1, "high": 1},
    }


def test_overlap_is_the_share_of_common_items_at_the_first_ten_places():
    requests = [
        asked("ann", Outcome([], 0), a="abcdefghijK", b="jihgfXYZVWK"),     # 5 of 10
        asked("ann", Outcome([], 0), a="ab", b="bcde"),                     # 1 of 4
        asked("bob", Outcome([], 0), a="", b=""),                           # nothing to share
        asked("bob", Outcome([], 0), a="a"),
        asked("cat", None, b="a"),
    ]
    sums = sum_answers(requests, ["a", "b"])
    assert sums.orphans == [0, 1]
    assert len(sums.sums_URS) == 2                                          # cat has no outcome
    overlap = compare(sums, **DRAWS)["overlap"]
    assert overlap["num_requests"] == 2
    assert overlap["overlap@10"]["value"] == pytest.approx((5 / 10 + 1 / 4) / 2)


def test_a_metric_without_any_answer_that_has_it_has_no_value():
    report = compare(sum_answers([asked("ann", Outcome([], 1), a="x")], ["a", "b"]), **DRAWS)
    first, second = (release["metrics"] for release in report["releases"])
    assert first["liked"] == {"value": 0, "low": 0, "high": 0}
    assert first["mrr"] is None
    assert set(second.values()) == {None}
    assert set(report["difference"]["metrics"].values()) == {None}


def test_draws_come_in_chunks_that_change_nothing(monkeypatch):
    users = [f"u{n}" for n in range(9)]
    sums_US = sum_answers(random_requests(users, "a"), ["a"]).sums_URS[:, 0]
    whole = measure(sums_US, **DRAWS)
    monkeypatch.setattr("engine.metrics.estimates.CHUNK_CELLS", 70)         # 7 draws
    for name, estimate in measure(sums_US, **DRAWS).items():
        assert estimate.draws_D == pytest.approx(whole[name].draws_D, nan_ok=True)


def test_a_shadow_is_compared_over_the_requests_that_have_one():
    """Shadows are missing where much was liked: that is not the shadow's merit."""
    requests = []
    for number in range(40):
        user, busy = f"u{number:02d}", number % 2 == 0
        given = AnswerList("a", FULL, ["x", "y"])
        shadow = AnswerList("b", FULL, ["x", "y"], is_shadow=True)
        requests.append(AnsweredRequest(
            user, [given] if busy else [given, shadow], Outcome(["x"] if busy else [], 0)
        ))
        requests.append(AnsweredRequest(user, [given, shadow], Outcome(["x"], 0)))
    report = compare(sum_answers(requests, ["a", "b"]), **DRAWS)
    first, second = (each["metrics"]["liked"]["value"] for each in report["releases"])
    assert first != second                                  # over all answers of each
    assert report["difference"]["num_requests"] == 60
    for name in ("liked", "hit", "mrr"):
        assert report["difference"]["metrics"][name] == {"value": 0, "low": 0, "high": 0}, name


def test_an_ab_is_compared_over_all_answers():
    requests = [*random_requests(["u1", "u2"], "a"), *random_requests(["u3", "u4"], "b", seed=1)]
    assert compare(sum_answers(requests, ["a", "b"]), **DRAWS)["difference"]["num_requests"] is None
