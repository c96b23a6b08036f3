"""What passes between boxes and the rest of the world, through this server."""
