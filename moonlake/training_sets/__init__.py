"""Training sets: specification, manifest, build, verification."""
