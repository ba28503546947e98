"""From a trained Hugging Face checkpoint to GGUF; no code lives here yet."""
