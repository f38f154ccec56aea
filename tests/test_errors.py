"""Errors arrive whole from another process."""

import builtins
import pickle

import pytest

from engine import errors
from engine.errors import EngineError

ERRORS = [kind for kind in vars(errors).values()
          if isinstance(kind, type) and issubclass(kind, EngineError)]


@pytest.mark.parametrize("kind", ERRORS, ids=lambda kind: kind.__name__)
def test_every_error_survives_pickle(kind: type[EngineError]) -> None:
    found = pickle.loads(pickle.dumps(kind("item 'x' is unknown")))
    assert type(found) is kind
    assert str(found) == str(kind("item 'x' is unknown"))
    assert "__init__" not in vars(kind)


@pytest.mark.parametrize("kind", ERRORS, ids=lambda kind: kind.__name__)
def test_every_error_stands_in_the_tree_of_the_module(kind: type[EngineError]) -> None:
    lines = [line for line in (errors.__doc__ or "").splitlines()
             if line.split()[:1] == [kind.__name__]]
    assert len(lines) == 1
    second = lines[0].split()[1:2]
    own = [base for base in kind.__bases__ if base.__module__ == "builtins"]
    assert [vars(builtins)[word] for word in second if word.endswith("Error")] == [
        base for base in own if base is not Exception
    ]


@pytest.mark.parametrize("kind", ERRORS, ids=lambda kind: kind.__name__)
def test_every_error_says_when_it_is_raised(kind: type[EngineError]) -> None:
    assert (kind.__doc__ or "").strip().endswith(".")
