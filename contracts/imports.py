"""Functions of the user's own, named ``module:function``."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

from contracts.errors import UserError, named


def import_function(path: str, key: str) -> Callable[..., Any]:
    """The function behind ``module:function``.

    Args:
        key: the option that names it, for the message.

    Raises:
        UserError: it can't be imported, or is no function.
    """
    module, _, name = path.partition(":")
    try:
        function = getattr(importlib.import_module(module), name)
    except Exception as error:  # the module is the user's own code and may raise anything
        raise UserError(f"{key} {path}: {named(error)}; expected an importable module:function") from error
    if not callable(function):
        raise UserError(f"{key} {path}: {name} is a {type(function).__name__}, expected a function")
    return function
