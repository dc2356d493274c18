"""SemiDAViL: semi-supervised domain adaptation for semantic segmentation with vision-language guidance.

Basak and Yin, "SemiDAViL: Semi-supervised Domain Adaptation with Vision-Language Guidance for
Semantic Segmentation", CVPR 2025. This package is the method; `sweeps` runs it in grids and
`analysis` draws what came out.
"""

import os

__version__ = "0.2.0"

# cuBLAS reads it when a process first multiplies on a GPU, which captioning may do long before a run
# begins; without it, deterministic mode refuses to multiply.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
