"""The experiment behind the figures of docs/train.md: what true offloading teaches, on the demo task.

plan       what is run and why            work      one task of it, in a process of its own
running    all of it, resumable           report    a table and a plot over the seeds
"""
