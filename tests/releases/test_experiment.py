import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.errors import ReleaseError
from engine.releases.experiment import Experiment

USERS = [str(number) for number in range(10_000)]


def included(share: float, release_id: str = "b") -> set[str]:
    experiment = Experiment(release_id, share, False, 0)
    return {user for user in USERS if experiment.includes(user)}


@pytest.mark.parametrize("share", [0.01, 0.1, 0.5, 0.9])
def test_the_share_of_users_is_the_share(share: float) -> None:
    deviation = math.sqrt(share * (1 - share) / len(USERS))
    assert abs(len(included(share)) / len(USERS) - share) < 4 * deviation


def test_all_users_are_all() -> None:
    assert included(1.0) == set(USERS)


def test_another_release_gets_other_users() -> None:
    both = included(0.1, "b") & included(0.1, "c")
    assert 0.005 < len(both) / len(USERS) < 0.016       # 0.01 if they have nothing to do


def test_who_is_included_is_a_matter_of_record() -> None:
    """A change of the rule would move users between the arms of a running experiment."""
    experiment = Experiment("release", 0.5, False, 0)
    assert [experiment.includes(user) for user in ("", "1", "ann", "ä", "a b", "x" * 200)] == [
        True, True, False, True, True, False,
    ]


@given(user=st.text(), small=st.floats(0.001, 1), large=st.floats(0.001, 1), time_s=st.integers())
def test_a_larger_share_keeps_the_users_of_a_smaller_one(
    user: str, small: float, large: float, time_s: int
) -> None:
    small, large = sorted((small, large))
    if Experiment("r", small, False, 0).includes(user):
        assert Experiment("r", large, True, time_s).includes(user)


@pytest.mark.parametrize("share", [0, -0.1, 1.01, float("nan")])
def test_a_share_out_of_range_is_named(share: float) -> None:
    with pytest.raises(ReleaseError, match=f"share: {share}"):
        Experiment("r", share, False, 0)
