"""A checkpoint -> a folder that loads in `transformers`; or a repository of the Hub: `blip-lite export`."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from blip_lite.captioner import Captioner
from blip_lite.errors import CheckpointError
from blip_lite.evaluation.files import Files
from blip_lite.evaluation.verdicts import of_log
from blip_lite.model.generation import GenerationSettings
from blip_lite.model.location import locate
from blip_lite.model.pretrained import DECODING, load_pretrained, save_pretrained
from blip_lite.reports.model_card import EXAMPLES, model_card, published, results_of
from blip_lite.storage import is_run, read_metrics


def export(ckpt: str | Path, to: Path) -> list[Path]:
    """Write the checkpoint, its model card and its metrics into a new folder, load it in `transformers`, and see that a
    picture gets the same caption there. No file names a place on this machine.

    Returns:
        The folder's files.

    Raises:
        CheckpointError: the checkpoint cannot be loaded, the folder is not empty, or the captions differ.
    """
    if to.exists() and (not to.is_dir() or any(to.iterdir())):
        raise CheckpointError(f"{to} is not empty: choose another --to")
    model, processor = load_pretrained(ckpt)
    folder = locate(ckpt).folder.resolve()
    save_pretrained(model, processor, to)
    run, name = folder.parent, folder.name
    if is_run(run):
        card = model_card(run, of_log(read_metrics(run)), name)
        (to / "README.md").write_text(card, "utf-8", "backslashreplace")
        if name == "best" and (run / EXAMPLES).is_dir():
            shutil.copytree(run / EXAMPLES, to / EXAMPLES)
        for split, result in results_of(run, name).items():
            text = json.dumps(published(result), indent=2) + "\n"
            Files.of(to, split).metrics.write_text(text, "utf-8")
    try:
        loads_in_transformers(to)
    except CheckpointError:
        shutil.rmtree(to)  # which was empty before
        raise
    return sorted(path for path in to.rglob("*") if path.is_file())


def loads_in_transformers(folder: Path) -> None:
    """Raises CheckpointError unless `transformers` loads the folder and captions a picture as we do."""
    import numpy as np
    import torch
    from transformers import BlipForConditionalGeneration, BlipProcessor

    ours = Captioner.from_pretrained(str(folder), device="cpu", dtype="float32")
    picture = np.random.default_rng(0).integers(0, 255, (96, 128, 3), dtype=np.uint8)
    pixel_values = ours.processor.pixel_values([picture])  # for both: their torchvision resizes a little differently
    load: Any = BlipForConditionalGeneration.from_pretrained
    theirs, info = load(folder, output_loading_info=True, dtype=torch.float32)
    if wrong := {kind: keys for kind, keys in info.items() if keys}:
        raise CheckpointError(f"{folder}: transformers says {wrong}")
    own = ours.settings()
    for prompt, settings in (("", GenerationSettings(max_new_tokens=20, num_beams=1)), (ours.processor.prompt, own)):
        decoding = {name: getattr(settings, name) for name in DECODING}
        prompt_ids = torch.tensor([[*ours.processor.prompt_ids(prompt), ours.processor.sep_token_id]])
        with torch.no_grad():
            found = theirs.eval().generate(pixel_values=pixel_values, input_ids=prompt_ids, **decoding)
        there = ours.processor.decode(found[0].tolist())
        here = ours.caption_pixels(pixel_values, settings, [prompt])[0][0]
        if here != there:
            raise CheckpointError(f"{folder}: transformers captions a picture with {there!r}, we with {here!r}")
    tokenizer = BlipProcessor.from_pretrained(folder).tokenizer
    if tokenizer(here).input_ids[1:-1] != ours.processor.words(here):
        raise CheckpointError(f"{folder}: the tokenizer that transformers loads splits {here!r} otherwise")


def push(folder: Path, repo: str, private: bool) -> str:
    """Upload the folder as the Hub's `repo` (`user/name`), made if it is not there. Returns its address.

    Raises:
        huggingface_hub.errors.HfHubHTTPError: not logged in, or refused.
    """
    from huggingface_hub import HfApi

    api = HfApi()
    url = api.create_repo(repo, private=private, exist_ok=True)
    api.upload_folder(folder_path=folder, repo_id=repo, commit_message="Upload by blip_lite")
    return str(url)
