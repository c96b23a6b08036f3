"""What a box is and what should happen to it: pure code, no await, no I/O, no clock."""
