"""Teaching a model to ask: annotated traces become token ids with labels, on which TRL's SFTTrainer trains.

The rows are in `rows`, which needs no torch; the training is in `training`.
"""
