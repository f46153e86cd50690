"""What scripts/web.py shows: `studio` draws, `preview` guesses what it will be, `page` is what one sees."""
