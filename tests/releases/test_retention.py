"""What is needed stays, whatever its age; what nobody knows stays, too."""

from hypothesis import given
from hypothesis import strategies as st

from engine.releases.retention import (
    STALLED_S,
    Folder,
    Published,
    holding_claims,
    old_folders,
    old_releases,
)

NOW_S, NIGHT_S = 10_000_000.0, 9_990_000.0
KEY = "0123456789ab"


def release(release_id: str, created_s: int, *needs: str) -> Published:
    return Published(release_id, created_s, 1, frozenset(needs))


def folder(name: str, changed_s: float = 5.0, *made_of: str) -> Folder:
    return Folder(name, 1, changed_s, frozenset(made_of))


def going(
    folders: list[Folder], *kept: Published, reports: frozenset[str] = frozenset()
) -> set[str]:
    old = old_folders(folders, kept, reports, before_s=NIGHT_S, now_s=NOW_S)
    return {each.name for each in old}


def test_the_newest_releases_stay_and_those_that_are_named() -> None:
    releases = [release("d", 4), release("a", 1), release("c", 2), release("b", 2)]
    assert [each.release_id for each in old_releases(releases, set(), 2)] == ["a", "b"]
    assert [each.release_id for each in old_releases(releases, {"a", "d"}, 1)] == ["b", "c"]
    assert old_releases(releases, set(), 4) == old_releases(releases, set(), 9) == []


@given(
    st.lists(st.tuples(st.sampled_from("abcdefgh"), st.integers(0, 3)), unique_by=lambda x: x[0]),
    st.sets(st.sampled_from("abcdefgh")), st.integers(1, 9),
)
def test_at_most_as_many_stay_as_are_kept_or_named(
    found: list[tuple[str, int]], named: set[str], keep: int
) -> None:
    releases = [release(name, created_s) for name, created_s in found]
    gone = {each.release_id for each in old_releases(releases, named, keep)}
    kept = {each.release_id for each in releases} - gone
    assert not gone & named
    assert min(keep, len(releases)) <= len(kept) <= keep + len(named)
    newest_gone = max((each.created_s for each in releases if each.release_id in gone), default=-1)
    assert sum(each.created_s >= newest_gone for each in releases) >= (keep if gone else 0)


def test_what_a_kept_release_was_made_of_stays_and_so_does_the_last_night() -> None:
    folders = [
        folder(f"crm-{KEY}"), folder("crm-aaaaaaaaaaaa"), folder(f"histories-{KEY}"),
        folder(f"slates-{KEY}"), folder("slates-aaaaaaaaaaaa", NIGHT_S),
        folder(f"exam_report-{KEY}"), folder("exam_report-aaaaaaaaaaaa"),
        folder(f"training/crm-{KEY}"), folder("training/bank-aaaaaaaaaaaa", NIGHT_S + 1),
    ]
    kept = release("r", 1, f"crm-{KEY}", f"histories-{KEY}")
    assert going(folders, kept, reports=frozenset([f"exam_report-{KEY}"])) == {
        "crm-aaaaaaaaaaaa", f"slates-{KEY}", "exam_report-aaaaaaaaaaaa", f"training/crm-{KEY}",
    }


def test_the_report_of_a_kept_training_stays() -> None:
    parts = (f"crm-{KEY}", f"bank-{KEY}")
    folders = [
        folder(f"report-{KEY}", 5.0, *parts, f"slates-{KEY}"),
        folder("report-aaaaaaaaaaaa", 5.0, f"crm-{KEY}"),
    ]
    assert going(folders, release("r", 1, *parts)) == {"report-aaaaaaaaaaaa"}


def test_what_has_another_name_than_an_output_stays() -> None:
    names = [
        "notes", "crm", f"crm-{KEY}.old", f"crm-{KEY[:-1]}", f"crm-{KEY}0", f"CRM-{KEY}",
        f"my-crm-{KEY}", f"days-{KEY}", f"collected-{KEY}", f"recommendations-{KEY}", "training",
        "training/notes", f"other/crm-{KEY}", f"crm-{KEY.upper()}", f"notes-{KEY}.claim", ".claim",
    ]
    assert going([folder(name) for name in names]) == set()


def test_no_folder_goes_while_somebody_writes() -> None:
    folders = [folder(f"prompts-{KEY}"), folder(f"bank-{KEY}.claim", NOW_S - 3600)]
    assert going(folders) == set()
    assert holding_claims(folders, NOW_S) == [f"bank-{KEY}.claim"]


def test_a_claim_of_a_process_that_was_killed_goes_with_what_it_wrote() -> None:
    claim = folder(f"bank-{KEY}.claim", NOW_S - STALLED_S)
    assert going([claim, folder(f"bank-{KEY}"), folder(f"training/bank-{KEY}")]) == {
        f"bank-{KEY}", f"bank-{KEY}.claim", f"training/bank-{KEY}",
    }
