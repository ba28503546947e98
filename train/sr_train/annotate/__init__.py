"""Finds the difficult steps of worked solutions and marks them: the data that SFT learns to ask from.

steps      a trace cut into steps, and where no marker may stand      spans       which steps to mark
judge      a large model's opinion of each step                       snippets    the paper's way: quotes
measured   how hard a step is for this small model                    journal     replies, kill-safe
pipeline   all of it, resumable                                       statistics, card   what came of it
"""
