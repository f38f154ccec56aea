"""What a client says of an item -> rating and label, by the release's rule."""

from dataclasses import dataclass

from engine.config import SourceConfig
from engine.errors import RequestError


@dataclass(frozen=True, slots=True)
class Feedback:
    """A rating (None where there was none), a label, and whether the rating made the label."""

    rating: float | None
    label: int
    is_label_derived: bool


def read_feedback(source: SourceConfig, rating: float | None, label: int | None) -> Feedback:
    """Return the label of an interaction: as given, else from the rating.

    Raises RequestError if the rating is out of range, or if nothing says what the label is.
    """
    if rating is not None and not source.rating_min <= rating <= source.rating_max:
        raise RequestError(
            f"rating: {rating:g} is not in [{source.rating_min:g}, {source.rating_max:g}]"
        )
    if source.label.kind == "implicit":
        if label == 0:
            raise RequestError("label: 0 has no meaning here, every event is a positive")
        return Feedback(rating, 1, is_label_derived=label is None)
    if label is not None:
        return Feedback(rating, label, is_label_derived=False)
    if source.label.kind == "column":
        raise RequestError("label: an event needs a label, a rating does not make one here")
    if rating is None:
        raise RequestError("rating: an event needs a rating or a label")
    return Feedback(rating, int(rating >= source.label.threshold), is_label_derived=True)


def allowed_labels(source: SourceConfig) -> list[int]:
    """Return the labels that an interaction may be given, with or without a rating."""
    return [1] if source.label.kind == "implicit" else [0, 1]


def rating_of(source: SourceConfig, rating: float | None, label: int) -> float:
    """Return the rating that the models read, one that they saw in training.

    1 where the source has no ratings, whatever was sent. An event without one, where it has: the
    lowest rating that has the label; the middle of the range where ratings make no label.
    """
    if not source.has_ratings:
        return 1.0
    if rating is not None:
        return rating
    if source.label.kind == "threshold":
        return source.label.threshold if label else source.rating_min
    return (source.rating_min + source.rating_max) / 2 if source.columns.rating else 1.0
