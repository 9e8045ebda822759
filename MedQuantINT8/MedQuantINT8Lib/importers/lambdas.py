"""Lambdas in the text of a bundle, parsed and never run."""

from __future__ import annotations

import ast


def parsed_function(text: str) -> ast.expr | None:
    """Return the syntax of a function's text; None where it is no Python expression."""
    try:
        return ast.parse(text, mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def only_argument(function: ast.Lambda) -> str | None:
    """Return the name of a lambda's argument; None where it has not just one, or one with a default."""
    arguments = function.args
    others = (arguments.posonlyargs, arguments.kwonlyargs, arguments.vararg, arguments.kwarg, arguments.defaults)
    return arguments.args[0].arg if len(arguments.args) == 1 and not any(others) else None
