"""Data sets on disk, label-budget splits, and the batches and validation images made from them."""
