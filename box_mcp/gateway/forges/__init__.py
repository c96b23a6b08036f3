"""Forges: where repositories have pull requests and issues, asked by the host for a box."""
