"""What a client may say of items, and which there are: facts of a release."""

from dataclasses import dataclass

from engine.recommender.feedback import allowed_labels
from engine.recommender.release import LoadedRelease


@dataclass(frozen=True, slots=True)
class CatalogueFacts:
    """The items of a release and the feedback that it reads."""

    release_id: str
    items: int
    fields: list[str]
    labels: list[int]
    """What an event may be labelled: 1 liked, 0 disliked."""
    rating_min: float | None
    """None, as `rating_max`, where the source has no ratings."""
    rating_max: float | None


def catalogue_facts(release: LoadedRelease) -> CatalogueFacts:
    """Return the facts of a release."""
    source = release.source
    low, high = (source.rating_min, source.rating_max) if source.has_ratings else (None, None)
    return CatalogueFacts(
        release.release_id, int(release.offered_I.sum()), list(release.catalogue.fields),
        allowed_labels(source), low, high,
    )
