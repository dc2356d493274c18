"""Tiny captioning models that are asked, one of each family, saved as their owners publish them.

Random weights of the real classes, and the chat templates of the models on the hub.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors

ASKED = ["Describe", "this", "street", "scene", "in", "one", "or", "two", "sentences", "briefly"]
SIZE = 96  # of the vocabulary
WORDS = ["<pad>", "<unk>", "<s>", "</s>", *ASKED, *(f"word{i}" for i in range(40))]

SMOLVLM = """<|im_start|>{% for message in messages %}{{message['role'] | capitalize}}\
{% if message['content'][0]['type'] == 'image' %}{{':'}}{% else %}{{': '}}{% endif %}\
{% for line in message['content'] %}{% if line['type'] == 'text' %}{{line['text']}}\
{% elif line['type'] == 'image' %}{{ '<image>' }}{% endif %}{% endfor %}<end_of_utterance>
{% endfor %}{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"""

QWEN = """{% for message in messages %}{% if loop.first and message['role'] != 'system' %}\
<|im_start|>system
You are a helpful assistant.<|im_end|>
{% endif %}<|im_start|>{{ message['role'] }}
{% if message['content'] is string %}{{ message['content'] }}<|im_end|>
{% else %}{% for content in message['content'] %}{% if content['type'] == 'image' or 'image' in \
content or 'image_url' in content %}<|vision_start|><|image_pad|><|vision_end|>{% elif 'text' in \
content %}{{ content['text'] }}{% endif %}{% endfor %}<|im_end|>
{% endif %}{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""

INTERNVL = """{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n'}}\
{% if message['content'] is string %}{{ message['content'] }}{% else %}\
{% for content in message['content'] %}{% if content['type'] == 'image' %}{{ '<IMG_CONTEXT>\n' }}\
{% elif content['type'] == 'text' %}{{ content['text'] }}{% endif %}{% endfor %}{% endif %}\
{{'<|im_end|>\n'}}{% endfor %}{% if add_generation_prompt %}{{'<|im_start|>assistant\n' }}{% endif %}"""

LFM2 = """{{- bos_token -}}{%- for message in messages -%}{{- "<|im_start|>" + message["role"] + "\n" -}}\
{%- if message["content"] is string -%}{{- message["content"] -}}{%- else -%}\
{%- for content in message["content"] -%}{%- if content["type"] == "image" -%}{{- "<image>" -}}\
{%- elif content["type"] == "text" -%}{{- content["text"] -}}{%- endif -%}{%- endfor -%}{%- endif -%}\
{{- "<|im_end|>\n" -}}{%- endfor -%}{%- if add_generation_prompt -%}\
{{- "<|im_start|>assistant\n" -}}{%- endif -%}"""

GEMMA3 = """{{ bos_token }}{%- for message in messages -%}\
{{ '<start_of_turn>' + message['role'] + '\n' }}{%- if message['content'] is string -%}\
{{ message['content'] | trim }}{%- elif message['content'] is iterable -%}\
{%- for item in message['content'] -%}{%- if item['type'] == 'image' -%}{{ '<start_of_image>' }}\
{%- elif item['type'] == 'text' -%}{{ item['text'] | trim }}{%- endif -%}{%- endfor -%}{%- endif -%}\
{{ '<end_of_turn>\n' }}{%- endfor -%}{%- if add_generation_prompt -%}\
{{'<start_of_turn>model\n'}}{%- endif -%}"""


def tokenizer_of(special: Sequence[str], named: dict[str, str], begins: bool = False) -> Any:
    """Words, and special tokens, some of which go by a name ("image_token").

    Args:
        begins: whether it writes a token of start before each text.
    """
    from transformers import PreTrainedTokenizerFast

    words = [*WORDS, *special]
    words += [f"more{i}" for i in range(SIZE - len(words))]  # a word for all that may be said
    known = models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>")
    tokenizer = Tokenizer(known)
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens(list(special))
    if begins:
        tokenizer.post_processor = processors.TemplateProcessing("<s> $A", None, [("<s>", 2)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>",
        unk_token="<unk>", extra_special_tokens=named,
    )  # fmt: skip


TEXT = {
    "vocab_size": SIZE,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 512,
    "pad_token_id": 0,
    "bos_token_id": 2,
    "eos_token_id": 3,
}
VISION = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "patch_size": 8,
}
Made = tuple[Any, Any]  # a model's configuration, its processor


def smolvlm() -> Made:
    from transformers import SmolVLMConfig, SmolVLMProcessor
    from transformers.models.smolvlm.image_processing_smolvlm import SmolVLMImageProcessor
    from transformers.models.smolvlm.video_processing_smolvlm import SmolVLMVideoProcessor

    named = {
        "image_token": "<image>", "fake_image_token": "<fake_token_around_image>",
        "global_image_token": "<global-img>", "end_of_utterance_token": "<end_of_utterance>",
    }  # fmt: skip
    grid = [f"<row_{row}_col_{column}>" for row in (1, 2) for column in (1, 2)]
    tokenizer = tokenizer_of([*named.values(), "<|im_start|>", *grid], named)
    config = SmolVLMConfig(
        vision_config={**VISION, "image_size": 32}, scale_factor=2,
        text_config={**TEXT, "model_type": "llama"}, pad_token_id=0,
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
    )  # fmt: skip
    images = SmolVLMImageProcessor(size={"longest_edge": 64}, max_image_size={"longest_edge": 32})
    return config, SmolVLMProcessor(
        images, tokenizer, SmolVLMVideoProcessor(), image_seq_len=4, chat_template=SMOLVLM
    )


def _qwen(version: str) -> Made:
    import transformers
    from transformers.models.qwen2_vl.image_processing_qwen2_vl import Qwen2VLImageProcessor
    from transformers.models.qwen2_vl.video_processing_qwen2_vl import Qwen2VLVideoProcessor

    marks = [
        "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>",
        "<|video_pad|>",
    ]  # fmt: skip
    tokenizer = tokenizer_of(marks, {})
    ids = dict(zip(marks, tokenizer.convert_tokens_to_ids(marks), strict=True))
    vision = {
        "depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "patch_size": 8,
        "out_hidden_size": 16,
    }  # fmt: skip
    text: dict[str, Any] = {**TEXT, "head_dim": 8}
    if version == "2_5_":
        vision |= {"window_size": 32, "fullatt_block_indexes": [0]}
        text["rope_parameters"] = {"type": "default", "mrope_section": [2, 1, 1]}
        images, videos = Qwen2VLImageProcessor, Qwen2VLVideoProcessor
    else:
        from transformers.models.qwen3_vl.video_processing_qwen3_vl import Qwen3VLVideoProcessor

        vision |= {"num_position_embeddings": 16, "deepstack_visual_indexes": [0]}
        text["rope_parameters"] = {
            "rope_type": "default", "mrope_section": [2, 1, 1], "mrope_interleaved": True,
        }  # fmt: skip
        images, videos = Qwen2VLImageProcessor, Qwen3VLVideoProcessor
    sizes = {"patch_size": 8, "size": {"shortest_edge": 16 * 16, "longest_edge": 64 * 64}}
    config = getattr(transformers, f"Qwen{version}VLConfig")(
        text_config=text, vision_config=vision, image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"], vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
    )  # fmt: skip
    processor = getattr(transformers, f"Qwen{version}VLProcessor")
    return config, processor(images(**sizes), tokenizer, videos(**sizes), chat_template=QWEN)


def qwen25() -> Made:
    return _qwen("2_5_")


def qwen3() -> Made:
    return _qwen("3")


def internvl() -> Made:
    from transformers import GotOcr2ImageProcessor, InternVLConfig, InternVLProcessor
    from transformers.models.internvl.video_processing_internvl import InternVLVideoProcessor

    named = {
        "start_image_token": "<img>", "end_image_token": "</img>",
        "context_image_token": "<IMG_CONTEXT>", "video_token": "<video>",
    }  # fmt: skip
    tokenizer = tokenizer_of([*named.values(), "<|im_start|>", "<|im_end|>"], named)
    config = InternVLConfig(
        vision_config={**VISION, "image_size": [32, 32], "patch_size": [8, 8]},
        text_config={**TEXT, "model_type": "qwen2"}, image_seq_length=4,
        image_token_id=tokenizer.convert_tokens_to_ids("<IMG_CONTEXT>"), tie_word_embeddings=False,
    )  # fmt: skip
    size = {"height": 32, "width": 32}
    images = GotOcr2ImageProcessor(size=size, crop_to_patches=True, min_patches=1, max_patches=4)
    return config, InternVLProcessor(
        images, tokenizer, InternVLVideoProcessor(size=size), image_seq_length=4,
        chat_template=INTERNVL,
    )  # fmt: skip


def lfm2() -> Made:
    from transformers import Lfm2VlConfig, Lfm2VlProcessor
    from transformers.models.lfm2_vl.image_processing_lfm2_vl import Lfm2VlImageProcessor

    named = {
        "image_token": "<image>", "image_start_token": "<|image_start|>",
        "image_end_token": "<|image_end|>", "image_thumbnail_token": "<|img_thumbnail|>",
    }  # fmt: skip
    grid = [f"<|img_row_{row}_col_{column}|>" for row in (1, 2) for column in (1, 2)]
    tokenizer = tokenizer_of(
        [*named.values(), *grid, "<|im_start|>", "<|im_end|>"], named, begins=True
    )
    config = Lfm2VlConfig(
        vision_config={**VISION, "num_patches": 16, "model_type": "siglip2_vision_model"},
        text_config={
            **TEXT, "model_type": "lfm2", "layer_types": ["conv", "full_attention"],
            "block_auto_adjust_ff_dim": False, "block_multiple_of": 16,
        },
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"), projector_hidden_size=16,
        tie_word_embeddings=False,
    )  # fmt: skip
    images = Lfm2VlImageProcessor(
        tile_size=32, encoder_patch_size=8, min_image_tokens=1, max_image_tokens=4, max_tiles=4,
        max_num_patches=16,
    )  # fmt: skip
    return config, Lfm2VlProcessor(images, tokenizer, chat_template=LFM2)


def gemma3() -> Made:
    from transformers import Gemma3Config, Gemma3ImageProcessor, Gemma3Processor

    named = {
        "boi_token": "<start_of_image>", "eoi_token": "<end_of_image>",
        "image_token": "<image_soft_token>",
    }  # fmt: skip
    marks = [*named.values(), "<start_of_turn>", "<end_of_turn>"]
    tokenizer = tokenizer_of(marks, named, begins=True)
    begin, end, image = tokenizer.convert_tokens_to_ids(list(named.values()))
    config = Gemma3Config(
        text_config={
            **TEXT, "head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": 16,
            "layer_types": ["sliding_attention", "full_attention"],
        },
        vision_config={**VISION, "image_size": 32, "vision_use_head": False},
        mm_tokens_per_image=4, boi_token_index=begin, eoi_token_index=end, image_token_index=image,
        tie_word_embeddings=False,
    )  # fmt: skip
    images = Gemma3ImageProcessor(size={"height": 32, "width": 32})
    return config, Gemma3Processor(images, tokenizer, chat_template=GEMMA3, image_seq_length=4)


def florence2() -> Made:
    from transformers import CLIPImageProcessor, Florence2Config, Florence2Processor

    tokenizer = tokenizer_of(["<image>"], {"image_token": "<image>"})
    config = Florence2Config(
        text_config={
            "model_type": "bart", "vocab_size": SIZE, "d_model": 16, "encoder_layers": 1,
            "decoder_layers": 2, "encoder_attention_heads": 2, "decoder_attention_heads": 2,
            "encoder_ffn_dim": 16, "decoder_ffn_dim": 16, "max_position_embeddings": 128,
            "pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3, "decoder_start_token_id": 3,
            "forced_eos_token_id": None,
        },
        vision_config={
            "depths": [1, 1], "patch_size": [7, 3], "patch_stride": [4, 2],
            "patch_padding": [3, 1], "patch_prenorm": [False, True], "embed_dim": [8, 16],
            "num_heads": [2, 2], "num_groups": [2, 2], "window_size": 4, "projection_dim": 16,
        },
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"), tie_word_embeddings=False,
    )  # fmt: skip
    size = {"height": 32, "width": 32}
    images = CLIPImageProcessor(size=size, do_center_crop=False)
    images.image_seq_length = 17
    return config, Florence2Processor(images, tokenizer)


def git() -> Made:
    from transformers import CLIPImageProcessor, GitConfig, GitProcessor

    text = {name: value for name, value in TEXT.items() if name != "num_key_value_heads"}
    config = GitConfig(vision_config={**VISION, "image_size": 32}, **text)
    size = {"height": 32, "width": 32}
    images = CLIPImageProcessor(size=size, do_center_crop=False)
    return config, GitProcessor(images, tokenizer_of([], {}))


CHATS: dict[str, Callable[[], Made]] = {
    "smolvlm": smolvlm,
    "qwen2.5": qwen25,
    "qwen3": qwen3,
    "internvl": internvl,
    "lfm2": lfm2,
    "gemma3": gemma3,
}


def save(make: Callable[[], Made], folder: Path) -> None:
    """Writes the family's model, whose weights are random, and its processor."""
    from transformers import AutoModelForImageTextToText

    torch.manual_seed(1)
    config, processor = make()
    model = AutoModelForImageTextToText.from_config(config)
    for weight in model.parameters():
        # Larger than at a training's start: what is said then hangs on what is seen.
        if weight.ndim > 1:
            torch.nn.init.normal_(weight, std=0.4)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
