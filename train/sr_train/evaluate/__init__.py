"""What a trained model is worth: any arm, on any problems, by the checkpoint or by the client's own GGUF.

arms      who writes, and how the baselines decide         client    the client as an engine of rollouts
records   one answer in figures, and the journal of them   running   all arms over all problems, resumable
figures   pass@1, shares, costs, with intervals            sweeps    curves, and the bias for a share
report    the table, as Markdown and JSON                  plots     accuracy against cost, PNG and SVG
"""
