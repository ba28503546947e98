"""Problem sets that can be checked: what `sr-edge eval` asks, and how it marks the answers."""
