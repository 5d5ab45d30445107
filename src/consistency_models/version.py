"""The version of the project; pyproject.toml reads the number here."""

__all__ = ["__version__"]

__version__ = "0.2.0"
