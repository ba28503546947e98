"""The steps that a `seam` is made of."""
