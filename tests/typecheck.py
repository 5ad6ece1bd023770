"""The type checker that jaxtyping applies to the project's functions during tests."""

from typing import Any, Self

from beartype import BeartypeConf, beartype

# As static checkers have it, a whole number will do where a float is asked for.
_checked = beartype(conf=BeartypeConf(is_pep484_tower=True))

# Their annotations promise arrays where NumPy gives its scalars.
_LEFT_OUT = {
    ("dl_core.train.metrics", "compute"),
    ("dl_core.train.run_directory", "write"),
    ("dl_core.train.run_directory", "first_infinite"),
}


def check(function):
    """Returns the function with its arguments and its result checked by beartype."""
    # JAX rebuilds configs and states with tracers, shapes or shardings in their fields.
    if function.__name__ == "__init__":
        return function
    if (function.__module__, function.__name__) in _LEFT_OUT:
        return function
    # beartype knows `Self` only where it is given the whole class.
    kinds = function.__annotations__
    function.__annotations__ = {
        name: Any if kind is Self else kind for name, kind in kinds.items()
    }
    return _checked(function)
