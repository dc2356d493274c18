"""What is said wherever a number is shown that generated data, or the bundled CLIP, have made."""

from semidavil.benchmarks import BENCHMARKS

TOY, BUNDLED = "toy", "bundled CLIP"
MEANING = {
    TOY: "generated scenes and a miniature model, which check the machinery and say nothing about the "
    "paper's claims",
    BUNDLED: "the miniature CLIP of this package, of 0.6 million parameters, instead of ViT-B/16: what it "
    "scores says nothing about the paper's claims",
}
REAL_WEIGHTS = "--preset paper, or --set model.vlm=ViT-B-16 model.weights=openai"


def mark(benchmark: str, toy: bool, vlm: str) -> str:
    """Which of the two a run is marked with; empty for real data with a model of the user's choice.

    Args:
        benchmark: its name; on CT volumes no vision-language model is used.
        toy: `data.toy`.
        vlm: `model.vlm`.
    """
    known = BENCHMARKS.get(benchmark)
    if toy:
        return TOY
    return BUNDLED if vlm == "toy" and (known is None or known.kind == "images") else ""
