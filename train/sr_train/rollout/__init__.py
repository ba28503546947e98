"""Rollouts: answers that a small model under training writes together with a large one, many at once.

What is asked for and what comes back is in `requests`; nothing heavy is imported before an engine is.
"""
