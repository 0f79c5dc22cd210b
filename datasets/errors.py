"""What goes wrong with data, said so that it can be mended."""

from __future__ import annotations


class DataError(ValueError):
    """Data that cannot be used; the message names the file, what was expected, what was found and what to do."""


class ActionsBeyondError(DataError):
    """Actions beyond [-1, 1] in data that is otherwise whole; the bounds of an environment may bring them inside."""


class DataNotFound(DataError):
    """No file for a data set; the message lists the places that were searched."""
