"""Networks: CLIP's two towers, the fusions, the segmenter of images, the U-Net of volumes."""
