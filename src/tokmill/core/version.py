"""The version of tokmill."""

__version__ = "0.1.0"
