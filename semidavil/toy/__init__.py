"""Generated street scenes and scans in the real formats, and the bundled miniature CLIP."""
