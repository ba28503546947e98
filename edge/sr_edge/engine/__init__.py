"""The models in a process of their own: it may abort, be killed for memory or hang, and only its answer ends.

`messages` is what the two sides say, `child` the side that decodes, `host` the side that asks.
"""
