"""The steps of `build_contrastive_pairs`: frames in, frames out."""
