"""The error that every data source raises for input that cannot be trained on."""

__all__ = ["DataError"]


class DataError(ValueError):
    """Data that cannot be used; the message names the file or key, what was found, what is allowed and the fix."""
