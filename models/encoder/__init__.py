"""The multimodal encoder."""
