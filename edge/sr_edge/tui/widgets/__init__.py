"""What draws one thing each, and says by messages what was asked for."""
