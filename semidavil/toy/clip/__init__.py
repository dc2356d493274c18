"""The bundled miniature CLIP: weights, tokenizer, and the script that pre-trained it."""
