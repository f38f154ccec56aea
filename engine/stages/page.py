"""Values and a template beside this file -> one HTML page that needs no other file."""

import base64
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from engine.metrics.ctr import LOWER_IS_BETTER

MIN_USERS = 20
"""Below this an interval over users is too narrow to be read."""


def render_page(template: str, values: Mapping[str, Any]) -> str:
    """Return the page; a value that the template misses is an error."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )
    environment.filters.update(
        {"interval": format_interval, "reading": reading, "signed": format_term}
    )
    return environment.get_template(template).render(values)


def data_uri(svg: str) -> str:
    """Return an image that needs no file."""
    return "data:image/svg+xml;base64," + base64.b64encode(svg.encode()).decode()


def format_interval(interval: Mapping[str, float] | None, sign: str = "") -> tuple[str, str]:
    """Return the value and its interval as text; a dash where there is none."""
    if interval is None:
        return "-", ""
    value, low, high = (f"{interval[key]:{sign}.4f}" for key in ("value", "low", "high"))
    return value, f"{low} to {high}"


def format_moment(time_s: int) -> str:
    """Return seconds since 1970 as text, UTC."""
    return datetime.fromtimestamp(time_s, UTC).strftime("%Y-%m-%d %H:%M:%S")


def format_term(value: float) -> str:
    """Return a number as the last term of a sum ("- 0.204")."""
    return f"{'-' if value < 0 else '+'} {abs(value):.3f}"


def reading(interval: Mapping[str, float] | None, metric: str, num_users: int) -> str:
    """Say what a difference's interval shows: better, worse, unclear, or few (users to draw)."""
    if num_users < MIN_USERS:
        return "few"
    if interval is None or interval["low"] <= 0 <= interval["high"]:
        return "unclear"
    return "better" if (interval["low"] > 0) != (metric in LOWER_IS_BETTER) else "worse"
