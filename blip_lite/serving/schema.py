"""What `POST /caption` takes and answers, as OpenAPI describes it."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from blip_lite.serving.requests import LIMITS, MAX_IMAGES, MAX_PROMPT

DEFAULT = "; default: the checkpoint's"


def number(description: str, **bounds: Any) -> Any:
    return Field(None, description=description + DEFAULT, **bounds)


class Parameters(BaseModel):
    """How to caption. What is not said, or null, is as the checkpoint's run had it."""

    model_config = ConfigDict(extra="forbid")

    prompt: str | None = number("how captions shall begin", max_length=MAX_PROMPT)
    num_beams: int | None = number("beams; 1 is greedy", ge=1, le=LIMITS["num_beams"])
    max_new_tokens: int | None = number("longest caption in tokens", ge=1, le=LIMITS["max_new_tokens"])
    min_new_tokens: int | None = number("shortest caption in tokens", ge=0, le=LIMITS["max_new_tokens"])
    length_penalty: float | None = number("of beams: above 0 longer captions, below 0 shorter ones", ge=-10, le=10)
    repetition_penalty: float | None = number("above 1 a token that was said is less likely again", ge=0.1, le=10)
    no_repeat_ngram_size: int | None = number("so many tokens never come twice in this order; 0: they may", ge=0, le=60)
    early_stopping: bool | None = number("stop when num_beams captions are complete")
    num_return_sequences: int | None = number("captions of each image", ge=1, le=LIMITS["num_return_sequences"])
    do_sample: bool | None = number("draw captions instead of searching the likeliest; needs num_beams 1")
    temperature: float | None = number("of do_sample; above 1 more daring", ge=0.01, le=100)
    top_k: int | None = number("of do_sample: draw among so many tokens; 0: among all", ge=0, le=LIMITS["top_k"])
    top_p: float | None = number("of do_sample: draw among tokens with this probability", gt=0, le=1)
    seed: int | None = number("of do_sample", ge=0, lt=2**63)


Text = Annotated[str, Field(description="base64, or an https URL where the server allows URLs")]


class Body(Parameters):
    """A request in JSON."""

    images: list[Text] = Field(min_length=1, max_length=MAX_IMAGES)


class Scored(BaseModel):
    caption: str
    score: float = Field(description="the mean log-probability of the caption's tokens")


class Captioned(Scored):
    captions: list[Scored] | None = Field(None, description="all, best first, where several were asked for")


class Failed(BaseModel):
    error: str
    status: int


class Answer(BaseModel):
    """One result an image, in the order of the request."""

    results: list[Captioned | Failed]


class Problem(BaseModel):
    """Why nothing was captioned; `results` where the images are why."""

    error: str
    results: list[Failed] | None = None


class Health(BaseModel):
    status: str
    model: str
    images_inside: int


def _schema(model: type[BaseModel], **more: Any) -> dict[str, Any]:
    schema = model.model_json_schema()
    schema["properties"] |= more
    return schema


IMAGE = {"type": "string", "format": "binary"}
FORM = _schema(Parameters, image={"type": "array", "items": IMAGE, "minItems": 1, "maxItems": MAX_IMAGES})
BODY = {
    "required": True,
    "content": {
        "application/json": {"schema": _schema(Body)},
        "multipart/form-data": {"schema": {**FORM, "required": ["image"]}},
        "image/*": {"schema": IMAGE},
        "application/octet-stream": {"schema": IMAGE},
    },
}


def described() -> dict[str, Any]:
    """What the page at /docs lists: (name, type, bounds, meaning) of the parameters."""
    bounds = {"minimum": "from {}", "exclusiveMinimum": "above {}", "maximum": "to {}", "exclusiveMaximum": "below {}"}
    bounds["maxLength"] = "at most {} characters"
    rows = []
    for name, field in Parameters.model_json_schema()["properties"].items():
        kind = field["anyOf"][0]  # the other is null
        limits = ", ".join(text.format(kind[key]) for key, text in bounds.items() if key in kind)
        rows.append((name, kind["type"], limits, field["description"].removesuffix(DEFAULT)))
    return {"parameters": rows, "images": MAX_IMAGES}
