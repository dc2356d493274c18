"""Captions: what describes images, where captions are kept, and captions that ablations take."""
