"""The user's own repositories, into boxes and back."""
