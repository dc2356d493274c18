"""Scores of networks on images and on volumes, pictures of what they predict, their latency."""
