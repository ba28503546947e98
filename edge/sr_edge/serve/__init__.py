"""`sr-edge serve`: an OpenAI-compatible server on this machine. What runs the models does not know of HTTP."""
