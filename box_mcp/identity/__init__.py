"""Who is behind a request over HTTP: tokens of our own, and those of an OAuth server."""
