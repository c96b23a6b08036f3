"""The door: the only code that speaks to a container engine."""
