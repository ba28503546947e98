"""`sr-edge serve`: an OpenAI-compatible server on this machine, over the same models and settings."""
