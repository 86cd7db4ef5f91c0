"""The version of engine and node pack; pyproject.toml has the same."""

__version__ = "0.1.0"
