"""Stories from books: see __main__.py for the commands."""
