"""Model FLOP utilisation: how much of what a GPU could compute a training step asks of it.

Only what the method's equations need is counted (Chowdhery et al., PaLM, appendix B): matrix products and
convolutions of a forward pass, a pass that gradients flow through as three, nothing for what is computed
again or around them. Upsampling by matrix products is among them: 3% of the `paper` preset on a GPU.
"""

import re
from collections.abc import Callable

import torch
from torch.utils.flop_counter import FlopCounterMode

# Forward, gradients of activations, gradients of weights: each as many FLOPs as the first.
TRAINED = 3

# Dense bfloat16 TFLOP/s of tensor cores, from NVIDIA's data sheets, by words of the name that PyTorch gives a
# card; the first that fits counts.
PEAK_TFLOPS = {
    "GH200": 989.0,
    "H200": 989.0,
    "H100 PCIe": 756.0,
    "H100 NVL": 835.0,
    "H100": 989.0,
    "A100": 312.0,
    "A40": 149.7,
    "A30": 165.0,
    "L40S": 362.0,
    "L4": 121.0,
}


def peak_flops(card: str) -> float | None:
    """FLOP/s of a card by the name that `torch.cuda.get_device_name` gives it; None if it is not known."""
    known = (peak for name, peak in PEAK_TFLOPS.items() if re.search(rf"\b{name}\b", card))
    peak = next(known, None)
    return None if peak is None else 1e12 * peak


def device_peak(device: torch.device) -> float | None:
    """FLOP/s of the device in bfloat16; None on CPUs and where it is not known."""
    return peak_flops(torch.cuda.get_device_name(device)) if device.type == "cuda" else None


def forward_flops(forward: Callable[[], object]) -> int:
    """FLOPs of a forward pass, by running it once; a multiplication and an addition are two."""
    fused = torch.backends.mha.get_fastpath_enabled()
    # One operator for all of attention would not be counted.
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            forward()
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)
    return counter.get_total_flops()
