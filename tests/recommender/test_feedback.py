import pytest

from engine.config import ColumnsConfig, LabelConfig, SourceConfig
from engine.errors import RequestError
from engine.recommender.feedback import Feedback, allowed_labels, rating_of, read_feedback

STARS = SourceConfig()
CLICKS = SourceConfig(format="csv", label=LabelConfig(kind="column"))
REVIEWS = SourceConfig(
    format="csv", columns=ColumnsConfig(rating="stars"), label=LabelConfig(kind="column")
)
PURCHASES = SourceConfig(label=LabelConfig(kind="implicit"))


@pytest.mark.parametrize(("source", "rating", "label", "expected"), [
    (STARS, 4.0, None, Feedback(4.0, 1, True)),
    (STARS, 3.5, None, Feedback(3.5, 0, True)),
    (STARS, 2.0, 1, Feedback(2.0, 1, False)),           # what was said, not what would follow
    (STARS, None, 0, Feedback(None, 0, False)),
    (CLICKS, None, 1, Feedback(None, 1, False)),
    (PURCHASES, None, None, Feedback(None, 1, True)),
    (PURCHASES, 1.0, 1, Feedback(1.0, 1, False)),
])
def test_a_label_is_given_or_follows_from_the_rating(
    source: SourceConfig, rating: float | None, label: int | None, expected: Feedback
) -> None:
    assert read_feedback(source, rating, label) == expected


@pytest.mark.parametrize(("source", "rating", "label", "named"), [
    (STARS, None, None, "rating"), (CLICKS, None, None, "label"), (CLICKS, 5.0, None, "label"),
    (STARS, 0.5, None, "rating"),
    (STARS, 5.5, 1, "rating"), (STARS, float("nan"), None, "rating"), (PURCHASES, None, 0, "label"),
])
def test_what_says_nothing_or_too_much_is_refused(
    source: SourceConfig, rating: float | None, label: int | None, named: str
) -> None:
    with pytest.raises(RequestError, match=f"^{named}: "):
        read_feedback(source, rating, label)


@pytest.mark.parametrize(("source", "rating", "label", "expected"), [
    (STARS, 2.5, 1, 2.5), (STARS, None, 1, 4.0), (STARS, None, 0, 1.0),
    (CLICKS, None, 0, 1.0), (CLICKS, 5.0, 1, 1.0),
    (REVIEWS, 5.0, 0, 5.0), (REVIEWS, None, 1, 3.0),
    (PURCHASES, None, 1, 1.0), (PURCHASES, 5.0, 1, 1.0),    # imported purchases all have 1
])
def test_models_read_a_rating_that_fits_the_label(
    source: SourceConfig, rating: float | None, label: int, expected: float
) -> None:
    assert rating_of(source, rating, label) == expected


@pytest.mark.parametrize("source", [STARS, CLICKS, REVIEWS, PURCHASES])
def test_the_labels_that_are_allowed_are_those_that_are_not_refused(source: SourceConfig) -> None:
    for label in (0, 1):
        if label in allowed_labels(source):
            assert read_feedback(source, None, label).label == label
        else:
            with pytest.raises(RequestError, match=r"^label: "):
                read_feedback(source, None, label)
