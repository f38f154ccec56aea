"""Settings of other libraries' models: every combination is tried, validation chooses."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

Settings = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Search:
    """What was tried, and what validation said of it."""

    metric: str
    trials: Sequence[tuple[Settings, float]]

    @property
    def best(self) -> Settings:
        """Return the settings with the highest value; the first of equals."""
        return max(self.trials, key=lambda trial: trial[1])[0]

    def to_json(self) -> list[dict[str, Any]]:
        """Return every trial's settings and value."""
        return [{**settings, self.metric: value} for settings, value in self.trials]


def search(
    grid: Mapping[str, Sequence[Any]], metric: str, measure: Callable[[Settings], float]
) -> Search:
    """Measure every combination of a grid's values on validation."""
    combinations = (dict(zip(grid, values, strict=True)) for values in product(*grid.values()))
    return Search(metric, [(settings, measure(settings)) for settings in combinations])
