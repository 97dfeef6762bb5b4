"""The page of `blip-lite serve`, as Hugging Face Spaces want it; needs `pip install "blip_lite[demo]"`.

Its requests go the way of those over HTTP: within the same limits, and in batches with them.
"""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")

import gradio as gr
from fastapi import FastAPI, HTTPException

from blip_lite.data.sources.shapes import draw_scene, scene_ids
from blip_lite.processing.picture import Picture
from blip_lite.serving.requests import LIMITS, MAX_BYTES, MAX_PROMPT
from blip_lite.serving.schema import Failed, Parameters
from blip_lite.serving.service import Service, told


async def caption(
    service: Service, path: str | None, prompt: str, beams: float, tokens: float
) -> tuple[str, list[list[Any]]]:
    """The caption, and each beam's caption and score; what is wrong is the caption."""
    if path is None:
        return "Choose a photograph first.", []
    start = starts(service)
    values = {
        "num_beams": None if beams == start["num_beams"] else beams,  # then the checkpoint's, which may be beyond
        "num_return_sequences": beams,
        "max_new_tokens": None if tokens == start["max_new_tokens"] else tokens,
        "prompt": prompt or None,
    }
    try:
        with told():
            parameters = Parameters.model_validate(values).model_dump(exclude_none=True)
        end = time.monotonic() + service.options.timeout
        [result] = await service.caption([Picture(path, Path(path).read_bytes)], parameters, end)
    except HTTPException as error:
        return f"No caption: {error.detail}.", []
    if isinstance(result, Failed):
        return f"This image cannot be used: {result.error}.", []
    return result.caption, [[one.caption, round(one.score, 3)] for one in result.captions or [result]]


def starts(service: Service) -> dict[str, int]:
    """Where the sliders begin: at the checkpoint's own settings, within the limits."""
    own = service.captioner.settings()
    return {name: min(getattr(own, name), LIMITS[name]) for name in ("num_beams", "max_new_tokens")}


def page(service: Service) -> gr.Blocks:
    """The page; its examples are drawn."""
    examples = Path(tempfile.mkdtemp(prefix="blip_lite-"))
    atexit.register(shutil.rmtree, examples, ignore_errors=True)
    for number, scene in enumerate(scene_ids(4, 0), 1):
        draw_scene(scene, 256).save(examples / f"scene-{number}.png")
    start = starts(service)
    with gr.Blocks(title=f"blip_lite: {service.options.name}") as blocks:
        gr.Markdown(f"# What is in this photograph?\nCaptions by **{service.options.name}**")
        with gr.Row():
            with gr.Column():
                image: Any = gr.Image(type="filepath", label="Photograph", height=380, sources=["upload", "clipboard"])
                # The file as it is: gradio opens it by itself, and ends in an error where that fails.
                image.preprocess = lambda payload: payload and payload.path
                gr.Examples([str(path) for path in sorted(examples.iterdir())], image, label="Drawn scenes to try")
                prompt = gr.Textbox(
                    label="The caption shall begin with", placeholder="a photography of", max_length=MAX_PROMPT
                )
                beams = gr.Slider(
                    1,
                    LIMITS["num_beams"],
                    start["num_beams"],
                    step=1,
                    label="Beams: how many captions are followed at a time",
                )
                tokens = gr.Slider(
                    1,
                    LIMITS["max_new_tokens"],
                    start["max_new_tokens"],
                    step=1,
                    label="Longest caption, in tokens",
                )
                button = gr.Button("Caption", variant="primary")
            with gr.Column():
                text = gr.Textbox(label="Caption", lines=3)
                table = gr.Dataframe(
                    headers=["caption", "score"],
                    datatype=["str", "number"],
                    column_widths=["80%", "20%"],
                    wrap=True,
                    label="All beams; the score is the mean log-probability of the tokens",
                )

        async def ask(path: str | None, prompt: str, beams: float, tokens: float) -> tuple[str, list[list[Any]]]:
            return await caption(service, path, prompt, beams, tokens)

        gr.on(
            [button.click, image.upload],
            ask,
            [image, prompt, beams, tokens],
            [text, table],
            api_name="caption",
            concurrency_limit=service.options.max_queue,  # what waits is captioned together
        )
    return blocks


def mount(app: FastAPI, service: Service) -> None:
    """Show the page at `/`."""
    blocks = page(service).queue(max_size=service.options.max_queue)
    gr.mount_gradio_app(app, blocks, path="/", max_file_size=MAX_BYTES, footer_links=["gradio"], run_history=False)
