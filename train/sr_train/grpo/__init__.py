"""Reinforcement learning of when to ask, on rollouts that really ask, through TRL's GRPOTrainer."""
