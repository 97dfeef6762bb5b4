"""A page that captions photographs, as Hugging Face Spaces want it: `pip install "blip_lite[demo]"; blip-lite serve`.

Requests that wait together are captioned together. It listens on this machine only, unless GRADIO_SERVER_NAME says
otherwise, as it does in a Space.
"""

from __future__ import annotations

import dataclasses
import os
from itertools import groupby
from typing import Any

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")

import gradio as gr
import torch

from blip_lite.captioner import Captioner
from blip_lite.errors import ImageError

MAX_BEAMS, MAX_TOKENS, MAX_PROMPT = 10, 60, 100  # the last in characters


def caption_batch(captioner: Captioner, *columns: list[Any]) -> list[list[Any]]:
    """Caption several requests at once, those with the same settings in one batch. What is wrong with one is its
    answer, and the others go on.

    Args:
        captioner: the model.
        *columns: paths of images, prompts, numbers of beams and of tokens: one item a request.

    Returns:
        The captions; the tables of each beam's caption and score.
    """
    requests = list(zip(*columns, strict=True))
    answers: list[tuple[str, list[list[Any]]]] = [("", [])] * len(requests)

    positions = captioner.model.config.text.max_position_embeddings
    room = [
        positions - len(captioner.processor.prompt_ids((r[1] or captioner.processor.prompt)[:MAX_PROMPT]))
        for r in requests
    ]

    def settings_of(i: int) -> tuple[int, int]:
        beams, tokens = int(requests[i][2] or 1), int(requests[i][3] or 1)
        return min(max(1, beams), MAX_BEAMS), min(max(1, tokens), MAX_TOKENS, max(1, room[i]))

    for (beams, tokens), group in groupby(sorted(range(len(requests)), key=settings_of), settings_of):
        pixels: dict[int, torch.Tensor] = {}
        for i in group:
            path, prompt = requests[i][0], requests[i][1] or ""
            if path is None:
                answers[i] = ("Choose a photograph first.", [])
            elif len(prompt) > MAX_PROMPT or room[i] < 1:
                answers[i] = (f"The prompt is too long ({len(prompt)} characters; {MAX_PROMPT} are allowed).", [])
            else:
                try:
                    pixels[i] = captioner.processor.pixels(path)
                except ImageError as error:
                    answers[i] = (f"This image cannot be used: {str(error).removeprefix(f'{path}: ')}.", [])
        if pixels:
            own = captioner.settings()
            settings = dataclasses.replace(
                own,
                num_beams=beams,
                num_return_sequences=beams,
                max_new_tokens=tokens,
                min_new_tokens=min(own.min_new_tokens, tokens),
            )
            prompts = [requests[i][1] or None for i in pixels]
            found = captioner.caption_and_score(torch.stack(list(pixels.values())), settings, prompts)
            for i, pairs in zip(pixels, found, strict=True):
                answers[i] = (pairs[0][0], [[text, round(score, 3)] for text, score in pairs])
    return [[caption for caption, _ in answers], [table for _, table in answers]]


def page(captioner: Captioner, batch_size: int) -> gr.Blocks:
    with gr.Blocks(title="blip_lite") as blocks:
        gr.Markdown("# What is in this photograph?")
        with gr.Row():
            with gr.Column():
                image = gr.Image(type="filepath", label="Photograph", height=380)
                prompt = gr.Textbox(
                    label="The caption shall begin with", placeholder="a photography of", max_length=MAX_PROMPT
                )
                own = captioner.settings()
                beams = gr.Slider(
                    1, MAX_BEAMS, own.num_beams, step=1, label="Beams: how many captions are followed at a time"
                )
                tokens = gr.Slider(1, MAX_TOKENS, own.max_new_tokens, step=1, label="Longest caption, in tokens")
                button = gr.Button("Caption", variant="primary")
            with gr.Column():
                caption = gr.Textbox(label="Caption", lines=3)
                table = gr.Dataframe(
                    headers=["caption", "score"],
                    datatype=["str", "number"],
                    column_widths=["80%", "20%"],
                    wrap=True,
                    label="All beams; the score is the mean log-probability of the tokens",
                )
        gr.on(
            [button.click, image.upload],
            lambda *columns: caption_batch(captioner, *columns),
            [image, prompt, beams, tokens],
            [caption, table],
            api_name="caption",
            batch=True,
            max_batch_size=batch_size,
        )
    return blocks


def serve(ckpt: str, batch_size: int) -> None:
    """Load a checkpoint and answer until somebody stops it; at most `batch_size` images at a time."""
    blocks = page(Captioner.from_pretrained(ckpt), batch_size)
    blocks.queue(max_size=100).launch(max_file_size="20mb")
