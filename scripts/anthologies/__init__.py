"""Stories from books: see __main__.py for the commands."""

from scripts.anthologies.stories import Story, split_anthology

__all__ = ["Story", "split_anthology"]
