"""`python -m sr_edge.engine`, for `host`."""

from sr_edge.engine.child import main

if __name__ == "__main__":
    main()
