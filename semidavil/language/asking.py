"""How a captioning model is asked for a caption: in a chat, by a task, or not at all.

Chat models (SmolVLM, Qwen-VL, InternVL, LFM2-VL, Gemma) say what their chat template lets them be asked,
Florence-2 has a token for each of its tasks, and BLIP, BLIP-2, GIT and vision-encoder-decoder models see the
image alone. The folder of a model says which it is. A template is rendered by transformers in a sandbox.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from PIL import Image

from semidavil.language.base import CaptionError

# What the captions of finished runs were asked for: another wording needs another RESULTS_VERSION.
CHAT_PROMPT = (
    "Describe this street scene in one or two sentences, with at most 40 words: what there is, and where "
    "it is (left, right, centre, near, far away). Answer with the description alone."
)
TASKS = (
    "<DETAILED_CAPTION>",
    "<CAPTION>",
    "<MORE_DETAILED_CAPTION>",
)  # the first asks for a sentence or two
UNASKED = ("blip", "blip-2", "git", "vision-encoder-decoder")  # types that caption an image alone
OWN_CODE = (
    "it comes with code of its own, which is never executed here: choose a model that transformers "
    "has itself, such as a conversion whose name ends in -hf"
)
UNASKED_TOKENS = 40  # their captions' limit


@dataclass(frozen=True)
class Question:
    """What a model is asked of every image.

    Attributes:
        way: how it is asked.
        prompt: in which words; a task's token; empty where it is not asked.
        tokens: the most that an answer may have, of the model's own tokens.
    """

    way: Literal["chat", "task", "unasked"]
    prompt: str
    tokens: int

    def mark(self) -> str:
        """What tells apart the captions of one model that was asked differently."""
        return f"{self.tokens} {self.prompt}".rstrip()


def question_for(folder: Path, kind: str, name: str, prompt: str, fits: int) -> Question:
    """The question that fits the model in a folder; reads JSON, loads nothing.

    Args:
        kind: `hf`, or one whose models see the image alone.
        name: what it is called, for messages.
        prompt: what to ask instead of the default.
        fits: tokens that are left to a caption in the text encoder. Vocabularies differ, words are much
            the same: an answer is about as long as what can be read.

    Raises:
        CaptionError: a prompt for a model that takes none, a task that Florence-2 does not have, or a model
            that nobody could ask.
    """
    config, prompt = read_json(folder / "config.json"), prompt.strip()
    model_type = config.get("model_type", "")
    if kind != "hf" or model_type in UNASKED:
        if prompt:
            raise CaptionError(
                f"{name} captions images without being asked: leave model.caption_prompt empty, or "
                "choose a chat model"
            )
        return Question("unasked", "", UNASKED_TOKENS)
    if model_type == "florence2":
        if prompt and prompt not in TASKS:
            raise CaptionError(
                f"{name} is asked by a task, not by {prompt!r}: choose model.caption_prompt from "
                f"{', '.join(TASKS)}"
            )
        return Question("task", prompt or TASKS[0], fits)
    if not has_chat_template(folder) and "auto_map" in config:
        raise CaptionError(f"{name} cannot be asked: {OWN_CODE}")
    if not has_chat_template(folder):
        raise CaptionError(
            f"{name} cannot be asked: its processor has no chat template (chat_template.jinja or "
            f"chat_template.json in {folder}). Choose a model of images that was trained to follow "
            "instructions (its name often ends in -Instruct or -it)"
        )
    return Question("chat", prompt or CHAT_PROMPT, fits)


def has_chat_template(folder: Path) -> bool:
    """Whether a chat template is in one of the places where transformers looks for it."""
    if (folder / "chat_template.jinja").is_file():
        return True
    files = ("chat_template.json", "processor_config.json", "tokenizer_config.json")
    return any(read_json(folder / file).get("chat_template") for file in files)


def read_json(file: Path) -> dict[str, Any]:
    """What a JSON file holds; nothing if it is not there or no JSON."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def model_inputs(question: Question, processor: Any, images: Sequence[Image.Image]) -> Any:
    """What the model generates from: pixels, and what it is asked, as PyTorch tensors of the batch.

    Raises:
        CaptionError: the template has no place for an image.
    """
    if question.way == "unasked":
        pixels = processor.image_processor(images=list(images), return_tensors="pt")
        # Nothing but pixels: BLIP-2 then writes its image tokens by itself.
        return type(pixels)({"pixel_values": pixels["pixel_values"]})
    if question.way == "task":
        prompts = [question.prompt] * len(images)
        return processor(text=prompts, images=list(images), padding=True, return_tensors="pt")
    content = [{"type": "image"}, {"type": "text", "text": question.prompt}]
    chat = processor.apply_chat_template(
        [{"role": "user", "content": content}],
        # Some publish it with the tokenizer, where a processor does not look for it.
        None if processor.chat_template else processor.tokenizer.get_chat_template(),
        add_generation_prompt=True,
    )
    if question.prompt not in chat:
        raise CaptionError(
            "its chat template leaves out what it is asked: it is not made for images"
        )
    begins = processor.tokenizer.bos_token
    return processor(
        text=[chat] * len(images),
        images=[[image] for image in images],
        padding=True,  # images of several sizes take several numbers of tokens
        return_tensors="pt",
        # The template has written the first token already; a second one is not what was trained on.
        add_special_tokens=not (begins and chat.startswith(begins)),
    )


def answers(question: Question, processor: Any, inputs: Any, generated: Any) -> list[str]:
    """The captions in generated tokens (B, T), on one line each, without what was asked."""
    if question.way == "chat":
        generated = generated[:, inputs["input_ids"].shape[1] :]
    texts = processor.tokenizer.batch_decode(generated, skip_special_tokens=True)
    lines = [" ".join(text.split()) for text in texts]
    return [line.removeprefix("Assistant:").lstrip() for line in lines]
