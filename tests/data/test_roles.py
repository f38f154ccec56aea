"""Roles: a pure function of user and time, in the shares asked for."""

from dataclasses import replace

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from engine.config import RolesConfig
from engine.data.roles import JudgedRows, NightRows, Role, Roles, newest
from engine.data.splits import DAY_S
from engine.types import NO_WINDOW, History, Timeline, Window

ROLES = Roles(RolesConfig(rotate_days=7), since_s=30 * DAY_S)


def test_shares_are_those_of_the_settings() -> None:
    time = np.array([70 * DAY_S])
    found = np.array([ROLES.of(f"user-{number}", time)[0] for number in range(4000)])
    shares = np.bincount(found, minlength=5) / len(found)
    wanted = {Role.CRM: 0.65, Role.BANK: 0.1, Role.TUNE: 0.05, Role.JUDGE: 0.2, Role.OLD: 0.0}
    for role, share in wanted.items():
        assert abs(shares[role] - share) < 4 * np.sqrt(max(share, 0.001) * (1 - share) / 4000)


def test_rows_before_the_roles_are_old() -> None:
    times = np.array([0, 30 * DAY_S - 1, 30 * DAY_S])
    found = ROLES.of("u", times)
    assert found[:2].tolist() == [Role.OLD, Role.OLD]
    assert found[2] != Role.OLD


def test_users_change_roles_between_periods_and_not_within_one() -> None:
    days = np.arange(30, 30 + 70)
    roles = np.stack([ROLES.of(f"u{number}", days * DAY_S) for number in range(50)])
    periods = days // 7
    for period in np.unique(periods):
        within = roles[:, periods == period]
        assert (within == within[:, :1]).all()
    assert sum(len(np.unique(row)) > 1 for row in roles) > 40


@given(st.text(min_size=1), st.lists(st.integers(0, 10**10), min_size=1, max_size=30))
def test_a_row_has_the_same_role_alone_and_among_others(user_id: str, times: list[int]) -> None:
    together = ROLES.of(user_id, np.array(times))
    alone = [ROLES.of(user_id, np.array([time]))[0] for time in times]
    assert together.tolist() == alone


def test_only_rows_of_the_crm_are_counted() -> None:
    times = np.arange(0, 300, 3) * DAY_S
    numbers = np.arange(len(times))
    history = History(numbers, numbers.astype(np.float32), numbers % 2, times)
    kept = ROLES.counted("u", history)
    roles = ROLES.of("u", times)
    assert set(roles.tolist()) == set(Role)
    assert kept.items.tolist() == numbers[(roles == Role.CRM) | (roles == Role.OLD)].tolist()
    assert kept.ratings.tolist() == kept.items.tolist()
    assert kept.labels.tolist() == (kept.items % 2).tolist()
    assert kept.timestamps_s.tolist() == (kept.items * 3 * DAY_S).tolist()


@given(st.lists(st.sampled_from([NO_WINDOW, *map(int, Window)]), max_size=40), st.integers(1, 5))
def test_each_window_keeps_its_newest_rows(windows: list[int], limit: int) -> None:
    kept = newest(np.array(windows, np.int8), limit)
    for row, window in enumerate(windows):
        later = windows[row + 1 :].count(window)
        assert kept[row] == (window if later < limit else NO_WINDOW)


def test_a_user_with_a_million_events_counts_as_one_of_many() -> None:
    times = 84 * DAY_S + np.arange(1_000_000) // 2          # of one period
    few = replace(ROLES, max_user_rows=50)
    night = NightRows(few, 0, 0, 0, end_s=100 * DAY_S)
    judged = JudgedRows(Timeline(0, 1, 2, 30 * DAY_S, 100 * DAY_S), few)
    items, ones = times % 7 + 1, np.ones(len(times), np.int8)
    history = History(items.astype(np.int32), ones.astype(np.float32), ones, times)
    for number in range(20):
        user_id, role = f"u{number}", ROLES.of(f"u{number}", times[:1])[0]
        is_judged = role == Role.JUDGE
        learned = np.flatnonzero(night.windows_of(user_id, times) != NO_WINDOW)
        asked = np.flatnonzero(judged.windows_of(user_id, times) != NO_WINDOW)
        newest_rows = list(range(999_950, 1_000_000))
        assert learned.tolist() == ([] if is_judged else newest_rows)
        assert asked.tolist() == (newest_rows if is_judged else [])
        counted = few.counted(user_id, history)
        assert counted.timestamps_s.tolist() == (
            times[newest_rows].tolist() if role == Role.CRM else []
        )
    assert few == ROLES == Roles.from_json(ROLES.to_json())
    assert Roles.from_json(few.to_json()).max_user_rows == 50
