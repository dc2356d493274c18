"""SemiVL (Hoyer et al., ECCV 2024): UniMatch on a CLIP that is kept close to its pre-training."""

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from semidavil.benchmarks import BENCHMARKS
from semidavil.flops import TRAINED
from semidavil.language.concepts import concepts_of
from semidavil.losses import consistency_loss, pseudo_label
from semidavil.methods.base import Batch, Losses, Rates, paste
from semidavil.methods.unimatch import UniMatch
from semidavil.models.layers import upsample
from semidavil.models.segmenter import pad_to_patches
from semidavil.models.text import Language
from semidavil.models.vlm import VLM


class SemiVL(UniMatch):
    """UniMatch's objective with language guidance from fixed class definitions.

    - Spatial fine-tuning: of the vision encoder, only attention blocks and position embeddings are
      trained (a network of convolutions has neither: it stays frozen).
    - Language-guided decoder: instead of captions, the text features of every class, each averaged
      over the concepts of its definition. Its attention is `model.fusion=vlga`.
    - Guidance: the strong views and the perturbed features also learn what the frozen CLIP says of
      the weak view (dense as `model.dense` says, by default as in MaskCLIP), where its confidence reaches
      `rivals.semivl_confidence`; the mean over all pixels, weighted as UniMatch's terms and by a
      factor that falls linearly from `rivals.semivl_guidance` to 0. It is added to UniMatch's
      total (our reading of where the factor 1/2 ends). A class is as likely as its likeliest concept,
      as the authors have it on Cityscapes.
    - The authors' learning rates on Cityscapes (`rivals.semivl_lr`): the vision encoder at a tenth,
      fusion and decoder at ten times of it, norms without weight decay. Their crops of 801 pixels are
      not: the crop is what all methods of a comparison share.
    """

    # UniMatch's, and the frozen CLIP's encoder.
    unlabelled_passes = (1 + 3 * TRAINED, 1 + 3 * TRAINED)

    guide: "Guide"
    definitions: Language

    def extend(self) -> None:
        super().extend()
        vision = self.student.vision
        for name, parameter in vision.named_parameters():
            parameter.requires_grad_(parameter.requires_grad and vision.is_spatial(name))

    def rates(self) -> Rates:
        rivals = self.config.rivals
        factor = rivals.semivl_backbone_lr_factor / rivals.semivl_head_lr_factor
        lr = rivals.semivl_lr * rivals.semivl_head_lr_factor
        return Rates(lr, factor, rivals.semivl_weight_decay, decay_norms=False)

    def use_vlm(self, vlm: VLM, classes: Sequence[str]) -> None:
        words = BENCHMARKS[self.config.data.benchmark].words
        prompts = [_prompts(name, words.get(name, ())) for name in classes]
        self.definitions = class_definitions(vlm, prompts)
        self.guide = Guide(vlm, prompts)

    def language(self, stream: dict[str, Any]) -> Language:
        """The definitions of all classes, whatever the image shows."""
        return self.definitions.repeat(len(stream["language"]))

    def refine(
        self, losses: Losses, batch: Batch, step: int, terms: list[tuple[float, Tensor]]
    ) -> Losses:
        rivals, unlabelled = self.config.rivals, batch["unlabelled"]
        confidence, labels = self.guide(unlabelled["image"])
        boxes = [*unlabelled["cutmix"], torch.zeros_like(unlabelled["cutmix"][0])]
        guidance = torch.stack(
            [
                weight
                * consistency_loss(
                    logits, paste(labels, box), paste(confidence, box), rivals.semivl_confidence
                )
                for (weight, logits), box in zip(terms, boxes, strict=True)
            ]
        ).sum()
        factor = rivals.semivl_guidance * (1 - step / self.config.training.steps)
        return {**losses, "loss": losses["loss"] + factor * guidance, "loss_guidance": guidance}


def _prompts(name: str, synonyms: Sequence[str]) -> list[str]:
    return [f"a photo of a {concept}" for concept in concepts_of(name, synonyms)]


def class_definitions(vlm: VLM, prompts: Sequence[list[str]]) -> Language:
    """One token per class (1, C, c_l): its concepts' sentence features, averaged."""
    rows = [vlm.text.sentences(texts).mean(0) for texts in prompts]
    return Language.of([torch.stack(rows)])


class Guide:
    """The frozen CLIP as a dense zero-shot classifier: confidence and label of every pixel.

    Not a module: it is no part of the method's state, as it never changes.
    """

    def __init__(self, vlm: VLM, prompts: Sequence[list[str]]) -> None:
        self.vision = copy.deepcopy(vlm.vision).requires_grad_(False).eval()
        self.scale, self.dense = vlm.logit_scale, vlm.dense
        self.text = vlm.text.embed([text for texts in prompts for text in texts])  # (n, e)
        self.concepts = [len(texts) for texts in prompts]  # of each class, in the order of `text`

    @torch.no_grad()
    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """(B, H, W) each, for images (B, 3, H, W) whose sides are whole patches or are padded."""
        height, width = images.shape[-2:]
        padded = pad_to_patches(images, self.vision.stride)
        embeddings = self.vision.embed(padded, self.dense).float()
        scores = self.scale * torch.einsum("behw,ne->bnhw", embeddings, self.text)
        parts = scores.split(self.concepts, dim=1)
        scores = torch.stack([part.amax(1) for part in parts], 1)  # (B, C, h, w)
        scores = upsample(scores, padded.shape[-2:])
        return pseudo_label(scores[..., :height, :width])
