"""sr-edge: a small model on the laptop writes, a large one writes its hard steps."""

__version__ = "0.1.0"
