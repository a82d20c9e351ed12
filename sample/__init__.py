"""`python -m sample`: pictures of people, one, several, or a file full of requests."""
