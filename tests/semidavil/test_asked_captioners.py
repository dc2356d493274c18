"""Chat models and Florence-2 in their real formats: asked, answered, told apart by what they are asked."""

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small_captioners
import torch
from captioning import captions_of
from PIL import Image
from png_files import write_images
from safetensors.torch import load_file, save_file
from slow_cases import also_slow
from small_captioners import CHATS, Made, save

from semidavil.language.asking import CHAT_PROMPT, TASKS
from semidavil.language.base import CaptionError
from semidavil.language.pretrained import Pretrained
from semidavil.models.vlm import VLM

FAMILIES: dict[str, Callable[[], Made]] = {**CHATS, "florence2": small_captioners.florence2}
QUICK = ("smolvlm", "florence2")  # asked by a chat template, and by a task
SHORT = "Describe this street scene briefly"


@pytest.fixture(scope="module")
def folder(made_once: Callable[[str, Callable[[Path], None]], Path]) -> Callable[[str], Path]:
    """The folder of a family's model, which no test may change."""
    return lambda family: made_once(f"captioner-{family}", lambda f: save(FAMILIES[family], f))


def captioner(folder: Path, prompt: str = "", fits: int = 12) -> Pretrained:
    memo = folder.parent / "memo.jsonl"
    return Pretrained("hf", str(folder), torch.device("cpu"), memo, prompt, fits)


def image(height: int, width: int, seed: int) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    return Image.fromarray(pixels)


# The last two take other numbers of tokens than the first where a family cuts images into tiles.
IMAGES = [image(32, 64, 0), image(32, 64, 1), image(64, 32, 2), image(32, 32, 3)]


@pytest.mark.parametrize("family", [*QUICK, *also_slow(*(f for f in FAMILIES if f not in QUICK))])
def test_a_model_says_something_of_each_image(family: str, folder: Callable[[str], Path]) -> None:
    describe = captioner(folder(family))
    said = describe(IMAGES)
    assert said == [describe([one])[0] for one in IMAGES]  # padding changes nothing
    assert len(set(said)) > 1  # it has seen the images
    for text in said:
        assert text == " ".join(text.split())
        assert 0 < len(text.split()) <= 12
        for part in ("<", "Assistant", "assistant", SHORT):  # neither the question nor its marks
            assert part not in text
    # The answer is what follows the question, as the model itself continues it.
    assert said[:1] == [_continued(describe, IMAGES[0])]
    describe.model.to(torch.bfloat16)  # as on a GPU: pixels follow
    assert all(describe(IMAGES))


def _continued(describe: Pretrained, image: Image.Image) -> str:
    """The most probable next token, twelve times, each with a new pass over everything."""
    question, processor, model = describe.question, describe.processor, describe.model
    if question.way == "task":
        inputs = processor(text=question.prompt, images=image, return_tensors="pt")
        ids, name = torch.tensor([[3]]), "decoder_input_ids"
        fixed = dict(inputs)
    else:
        content = [{"type": "image", "image": image}, {"type": "text", "text": question.prompt}]
        inputs = processor.apply_chat_template(
            [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=True,
            return_dict=True, return_tensors="pt",
        )  # fmt: skip
        ids, name = inputs["input_ids"], "input_ids"
        # One image alone: nothing is padded, so everything is attended to.
        fixed = {n: v for n, v in inputs.items() if n not in ("input_ids", "attention_mask")}
    start = ids.shape[1]
    for _ in range(question.tokens):
        extra = {n: _longer(v, ids) for n, v in fixed.items() if "token_type" in n}
        with torch.no_grad():
            logits = model(**{**fixed, **extra, name: ids}, use_cache=False).logits
        following = logits[:, -1:].argmax(-1)
        if following.item() == 3:  # the end
            break
        ids = torch.cat([ids, following], 1)
    words = processor.tokenizer.convert_ids_to_tokens(ids[0, start:].tolist())
    return " ".join(word for word in words if not word.startswith("<"))  # special tokens do


def _longer(types: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """Types of tokens: text for those that were generated."""
    return torch.nn.functional.pad(types, (0, ids.shape[1] - types.shape[1]))


def test_what_is_asked_reaches_the_model_and_tells_captions_apart(
    folder: Callable[[str], Path],
) -> None:
    for family, prompt in (("qwen3", SHORT), ("florence2", TASKS[1])):
        usual, other = captioner(folder(family)), captioner(folder(family), prompt)
        assert usual.identity != other.identity
        assert usual(IMAGES) != other(IMAGES)
        assert usual.identity != captioner(folder(family), fits=20).identity
        # The default by its own name is the default.
        assert usual.identity == captioner(folder(family), usual.prompt).identity
    assert captioner(folder("qwen3")).prompt == CHAT_PROMPT


def test_a_chat_template_is_a_part_of_the_identity(
    folder: Callable[[str], Path], tmp_path: Path
) -> None:
    shutil.copytree(folder("qwen3"), tmp_path / "model")
    before = captioner(tmp_path / "model")
    template = tmp_path / "model" / "chat_template.jinja"
    template.write_text(template.read_text().replace("helpful", "brief"))
    after = captioner(tmp_path / "model")
    assert before.identity != after.identity


def test_captions_of_models_that_are_not_asked_keep_their_names(tmp_path: Path) -> None:
    """As they have been since there are captions on disk: kind, hash of the files, limit of tokens."""
    (tmp_path / "config.json").write_text('{"model_type": "blip"}')
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    hashes = [
        hashlib.blake2b(file.read_bytes(), digest_size=16).hexdigest()
        for file in sorted(tmp_path.iterdir())
    ]
    digest = hashlib.blake2b("".join(hashes).encode(), digest_size=16).hexdigest()
    memo = tmp_path / "memo"
    for kind in ("blip", "hf"):
        made = Pretrained(kind, str(tmp_path), torch.device("cpu"), memo, "", 75)
        assert made.identity == f"{kind} {digest} 40"
    assert made.prompt == ""


def test_captions_of_a_chat_model_are_kept_and_as_long_as_the_text_encoder_reads(
    folder: Callable[[str], Path], tmp_path: Path, words: VLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths, name = write_images(tmp_path / "images", 3), f"hf:{folder('qwen3')}"
    first = captions_of(paths, name, words, (), tmp_path / "cache")
    assert max(len(text.split()) for text in first.values()) <= words.text.max_tokens - 2
    monkeypatch.setattr(Pretrained, "_load", None)  # captions on disk need no model
    assert captions_of(paths, name, words, (), tmp_path / "cache") == first
    with pytest.raises(TypeError):  # asked otherwise: its captions are not on disk
        captions_of(paths, name, words, (), tmp_path / "cache", prompt=SHORT)


def test_what_does_not_fit_on_the_device_is_captioned_in_parts(
    folder: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    describe = captioner(folder("florence2"))
    said = describe(IMAGES)
    generate, sizes = describe.model.generate, list[int]()

    def small(**inputs: Any) -> Any:
        sizes.append(len(inputs["input_ids"]))
        if sizes[-1] > 1:
            raise torch.OutOfMemoryError
        return generate(**inputs)

    monkeypatch.setattr(describe.model, "generate", small)
    assert describe(IMAGES[:3]) == said[:3]
    assert sizes == [3, 1, 2, 1, 1]

    def none(**inputs: Any) -> Any:
        raise torch.OutOfMemoryError

    monkeypatch.setattr(describe.model, "generate", none)
    with pytest.raises(torch.OutOfMemoryError):
        describe(IMAGES[:2])


@pytest.mark.parametrize("place", ["chat_template.json", "tokenizer_config.json"])
def test_a_chat_template_is_found_wherever_it_is_published(
    place: str, folder: Callable[[str], Path], tmp_path: Path
) -> None:
    shutil.copytree(folder("qwen3"), tmp_path / "model")
    template, file = tmp_path / "model" / "chat_template.jinja", tmp_path / "model" / place
    if not file.exists():
        file.write_text("{}")
    rewrite(file, chat_template=template.read_text())
    template.unlink()
    assert captioner(tmp_path / "model")(IMAGES[:1]) == captioner(folder("qwen3"))(IMAGES[:1])


def rewrite(file: Path, **changes: Any) -> None:
    """Changes values of a JSON file; None takes one out."""
    found = {**json.loads(file.read_text()), **changes}
    file.write_text(json.dumps({name: value for name, value in found.items() if value is not None}))


def test_models_that_cannot_be_asked_are_explained(
    folder: Callable[[str], Path], tmp_path: Path
) -> None:
    model = tmp_path / "model"
    shutil.copytree(folder("qwen3"), model)

    def reason(prompt: str = "") -> str:
        with pytest.raises(CaptionError) as raised:
            captioner(model, prompt)(IMAGES[:1])
        return str(raised.value)

    template = model / "chat_template.jinja"
    text = template.read_text()
    template.write_text(text.replace("<|image_pad|>", ""))
    assert "cannot be asked: " in reason()
    template.write_text("{{ messages[0]['role'] }}")
    assert "leaves out what it is asked" in reason()
    template.unlink()
    assert "no chat template" in reason()
    assert "-Instruct" in reason()
    (model / "chat_template.json").write_text(json.dumps({"chat_template": text}))

    config = model / "config.json"
    rewrite(config, model_type="gpt2")
    assert "gpt2 is no model that says something of images" in reason()
    (model / "modeling.py").write_text(f"open({str(tmp_path / 'executed')!r}, 'w')")
    rewrite(config, model_type="mine", auto_map={"AutoConfig": "modeling.Config"})
    assert "which is never executed here: choose a model that transformers has itself" in reason()
    rewrite(config, auto_map=None)
    assert "does not know the model_type 'mine'" in reason()
    (model / "chat_template.json").unlink()
    rewrite(config, auto_map={"AutoConfig": "modeling.Config"})
    assert "which is never executed here" in reason()
    assert not (tmp_path / "executed").exists()
    rewrite(config, model_type="blip")  # as others of its kind
    assert "captions images without being asked" in reason(SHORT)


def test_a_task_that_florence_does_not_have_is_refused(folder: Callable[[str], Path]) -> None:
    with pytest.raises(
        CaptionError, match=r"choose model\.caption_prompt from <DETAILED_CAPTION>, "
    ):
        captioner(folder("florence2"), "<OD>")


def test_weights_that_do_not_fit_are_refused(folder: Callable[[str], Path], tmp_path: Path) -> None:
    """transformers draws those anew with a warning: the captions would be noise."""
    shutil.copytree(folder("florence2"), tmp_path / "model")
    weights = load_file(tmp_path / "model" / "model.safetensors")
    moved = {name.replace("language_model", "text_model"): w for name, w in weights.items()}
    assert moved.keys() != weights.keys()
    save_file(moved, tmp_path / "model" / "model.safetensors", {"format": "pt"})
    with pytest.raises(CaptionError, match=r"weights are missing in its files, .*language_model"):
        captioner(tmp_path / "model")(IMAGES[:1])


def test_the_default_questions_do_not_change() -> None:
    """What finished runs were captioned by: changing them needs a new RESULTS_VERSION, and says so."""
    questions = "\n".join((CHAT_PROMPT, TASKS[0]))
    assert hashlib.blake2b(questions.encode(), digest_size=8).hexdigest() == "047fe7698693ab13"
