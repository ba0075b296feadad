"""The version: no other file names it."""

__version__ = "0.1.0"
