"""What `python -m semidavil demo` does: a page on which a finished run looks at pictures."""

import html
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from semidavil.commands.endings import PLUGIN, told

if TYPE_CHECKING:  # seconds to import
    import gradio
    import numpy as np

    from semidavil.experiments.attention import WordMaps
    from semidavil.experiments.predictor import Predictor, Seen

console = Console()

WORD_PIXELS, PICTURE_PIXELS = 320, 480  # of the longer side: a word's map, and at least a picture
WEIGHTS_NOTE = (
    "The attention weights of each word, brightest where its own are largest; the number is their mean over "
    "the picture. At each pixel, the weights of all words sum to 1."
)
MAPS_NOTE = (
    "The map of each word as the network reads it, from its smallest value to its largest: what is bright in "
    "one map cannot be compared with what is bright in another."
)
ASKED = "Leave the caption empty to ask the run's captioner."


def demo_command(
    run: Annotated[
        str, typer.Argument(help="A run's id, its folder, or its segmenter.safetensors.")
    ],
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    host: Annotated[
        str, typer.Option(help="Who may open it: 127.0.0.1 this machine, 0.0.0.0 everybody.")
    ] = "127.0.0.1",
    port: Annotated[
        int | None, typer.Option(help="[default: the first that is free from 7860 on]")
    ] = None,
    plugin: Annotated[list[str] | None, typer.Option(metavar="FILE", help=PLUGIN)] = None,
) -> None:
    """Opens a page: drop a picture, edit its caption, see classes and where each word matters."""
    from semidavil.experiments.predictor import Predictor, find_weights

    with told(console, "stopped", plugin or ()):
        predictor = Predictor.load(find_weights(run), device)
        blocks = build_page(predictor)
        _, address, _ = launch(blocks, host, port)
        console.print(f"run [bold]{predictor.name}[/]", soft_wrap=True)
        console.print(f"open {address} (Ctrl-C ends it)", soft_wrap=True, highlight=False)
        blocks.block_thread()


def gradio_module() -> Any:
    """Gradio, which asks nobody whether it is the newest and reports to nobody.

    Raises:
        RuntimeError: it is not installed.
    """
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    try:
        import gradio
    except ModuleNotFoundError as error:
        raise RuntimeError(f"{error.name} is needed: pip install -e '.[demo]'") from error
    return gradio


def launch(blocks: "gradio.Blocks", host: str, port: int | None) -> tuple[Any, str, str]:
    """Starts the page's server in a thread; the second of what it returns is the page's address."""
    gradio = gradio_module()
    # Fonts of the system: the themes' own are fetched from elsewhere.
    theme = gradio.themes.Default(
        font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]
    )
    return blocks.launch(
        server_name=host, server_port=port, theme=theme, share=False, ssr_mode=False, quiet=True,
        show_error=True, prevent_thread_lock=True, footer_links=[],
    )  # fmt: skip


def build_page(predictor: "Predictor") -> "gradio.Blocks":
    """The page; `launch` starts it."""
    from semidavil.experiments.attention import why_no_words, word_maps

    gradio, reads = gradio_module(), predictor.sees_captions
    why_not = why_no_words(predictor)

    def look(image: "np.ndarray | None", caption: str) -> tuple[Any, ...]:
        if image is None:
            raise gradio.Error("Drop a picture first.")
        try:
            said = caption.strip() or (predictor.own_caption(image) if reads else "")
            seen = predictor(image, said)
        except ValueError as error:  # the run's captioner cannot be had
            raise gradio.Error(str(error)) from error
        words = "" if why_not else words_of(image, word_maps(predictor, image, said))
        return said, *pictures_of(predictor, image, seen), words

    def drop(image: "np.ndarray | None") -> tuple[Any, ...]:
        return look(image, "") if image is not None else ("", None, "", None, "")

    with gradio.Blocks(
        title="SemiDAViL", analytics_enabled=False, delete_cache=(3600, 3600)
    ) as blocks:
        gradio.Markdown(f"# What it sees\n{_about(predictor)}")
        with gradio.Row():
            with gradio.Column():
                image = gradio.Image(label="Picture", elem_id="picture", sources=["upload"])
                caption = gradio.Textbox(
                    label="Caption", info=ASKED, lines=3, visible=reads, elem_id="caption"
                )
                again = gradio.Button("Segment", variant="primary", elem_id="segment")
            with gradio.Column():
                labels = gradio.Image(
                    label="Classes", elem_id="classes", interactive=False, buttons=["fullscreen"]
                )
                legend = gradio.HTML(elem_id="legend")
                confidence = gradio.Image(
                    label="Confidence: black 0, white 1",
                    elem_id="confidence",
                    interactive=False,
                    buttons=["fullscreen"],
                )
        gradio.Markdown(f"## Where each word matters\n{why_not or _note(predictor)}")
        words = gradio.HTML(elem_id="words", visible=not why_not)
        shown = [caption, labels, legend, confidence, words]
        image.change(drop, image, shown)
        again.click(look, [image, caption], shown)
        caption.submit(look, [image, caption], shown)
    return blocks


def _about(predictor: "Predictor") -> str:
    from semidavil.marks import MEANING, mark

    config = predictor.config
    marked = mark(config.data.benchmark, config.data.toy, config.model.vlm)
    meaning = f" **{marked}**: {MEANING[marked]}." if marked else ""
    return f"Run {predictor.name}.{meaning}"


def _note(predictor: "Predictor") -> str:
    return WEIGHTS_NOTE if predictor.network.fusion.words_are_weights else MAPS_NOTE


def pictures_of(
    predictor: "Predictor", image: "np.ndarray", seen: "Seen"
) -> "tuple[np.ndarray, str, np.ndarray]":
    """Classes over the picture, the legend with their shares, and confidence as grey."""
    import numpy as np

    from semidavil.evaluation.written import overlay

    palette = predictor.benchmark.palette
    grey = (255 * seen.confidence).round().astype(np.uint8)
    legend = legend_of(predictor.benchmark.classes, palette, seen)
    return _large(overlay(image, palette[seen.labels])), legend, _large(grey)


def _large(picture: "np.ndarray") -> "np.ndarray":
    """A small picture with larger pixels."""
    times = -(-PICTURE_PIXELS // max(picture.shape[:2]))
    return picture.repeat(times, 0).repeat(times, 1)


def legend_of(classes: Sequence[str], palette: "np.ndarray", seen: "Seen") -> str:
    """A table of the classes that are there, the largest first: colour, name, share, mean confidence."""
    import numpy as np

    counts = np.bincount(seen.labels.ravel(), minlength=len(classes))
    sums = np.bincount(seen.labels.ravel(), seen.confidence.ravel(), minlength=len(classes))
    rows = []
    for index in np.argsort(-counts, kind="stable"):
        if not counts[index]:
            break
        red, green, blue = palette[index]
        share, sure = 100 * counts[index] / seen.labels.size, sums[index] / counts[index]
        cells = (
            f'<span style="display:inline-block;width:1em;height:1em;background:rgb({red},{green},{blue})">'
            "</span>",
            html.escape(classes[index]), f"{share:.1f}&nbsp;%", f"{sure:.2f}",
        )  # fmt: skip
        rows.append(_row("td", cells))
    head = _row("th", ("", "class", "share", "confidence"))
    return f'<table style="width:100%;border-collapse:collapse">{head}{"".join(rows)}</table>'


def _row(kind: str, cells: Sequence[str]) -> str:
    sides = ("left", "left", "right", "right")
    style = "border:0;padding:2px 8px;text-align:"
    texts = (
        f'<{kind} style="{style}{side}">{cell}</{kind}>'
        for side, cell in zip(sides, cells, strict=True)
    )
    return f"<tr>{''.join(texts)}</tr>"


def words_of(image: "np.ndarray", found: "WordMaps") -> str:
    """Each word's map over the picture in grey, with the word below it; as many beside each other as fit."""
    import base64

    import cv2
    import numpy as np

    scale = WORD_PIXELS / max(image.shape[:2])
    height, width = (max(1, round(side * scale)) for side in image.shape[:2])
    small = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)
    grey = cv2.cvtColor(cv2.cvtColor(small, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2BGR)
    figures = []
    for word, values in zip(found.words, found.maps, strict=True):
        low = 0.0 if found.are_weights else float(values.min())
        span = max(float(values.max()) - low, 1e-12)
        bright = (255 * (values - low) / span).round().clip(0, 255).astype(np.uint8)
        large = cv2.resize(bright, (width, height), interpolation=cv2.INTER_LINEAR)
        shown = cv2.addWeighted(grey, 0.35, cv2.applyColorMap(large, cv2.COLORMAP_INFERNO), 0.65, 0)
        data = base64.b64encode(cv2.imencode(".jpg", shown)[1].tobytes()).decode()
        mean = f" {values.mean():.3f}" if found.are_weights else ""
        title = html.escape(word)
        figures.append(
            f'<figure style="margin:0"><img style="width:100%" alt="{title}" '
            f'src="data:image/jpeg;base64,{data}"><figcaption>{title}{mean}</figcaption></figure>'
        )
    grid = "display:grid;gap:8px;grid-template-columns:repeat(auto-fill,minmax(140px,1fr))"
    cut = f"<p>No room was left for: {html.escape(' '.join(found.cut))}</p>" if found.cut else ""
    return f'<div style="{grid}">{"".join(figures)}</div>{cut}'
