"""How jobs print a value with its interval."""

from collections.abc import Mapping


def format_interval(interval: Mapping[str, float] | None, sign: str = "") -> str:
    """Return "0.6718 [0.5882, 0.7399]"; a dash where there is no value."""
    if interval is None:
        return "-"
    value, low, high = (f"{interval[name]:{sign}.4f}" for name in ("value", "low", "high"))
    return f"{value} [{low}, {high}]"
