"""What holds for every test."""

import hypothesis


def test_no_property_fails_by_the_clock() -> None:
    assert hypothesis.settings().deadline is None
