"""Coding agents' own programs: how each is started, and what what it prints means; pure."""
