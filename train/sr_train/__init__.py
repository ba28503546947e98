"""Training: data, fine-tuning, rollouts, and the demo pair. Needs the extra `sr-edge[train]`."""
