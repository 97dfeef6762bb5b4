"""Before hours are spent: can it learn (`sanity`), and will it fit (`plan`)? Both take the loop's own `train_step`."""

from __future__ import annotations

import dataclasses
import itertools
import math
import shutil
import statistics
import time
from typing import Any

import torch
from accelerate.utils import broadcast_object_list

from blip_lite.captioner import Captioner, is_out_of_memory
from blip_lite.data.batches import Batch, Captions, epoch_batches, epoch_order, loader
from blip_lite.errors import DataError, TrainingError
from blip_lite.model.generation import GenerationSettings
from blip_lite.processing.text import normalize_caption
from blip_lite.settings import TrainConfig
from blip_lite.training.log import peak_memory
from blip_lite.training.loop import train_step, windows
from blip_lite.training.run import Run
from blip_lite.training.setup import prepare, show_augmentation, show_first_look, start


def sanity(config: TrainConfig, seconds: float = 60) -> dict[str, Any]:
    """Can this model, on this data, learn 8 captions word for word? Takes the same path as training does: a wrong
    start token, mask, label or image path shows here, in a minute, and not after a night.

    Returns:
        Steps, seconds, first and last loss, and the captions that came back.

    Raises:
        TrainingError: it could not; the message says what went wrong.
        ConfigError, DataError, CheckpointError: as in `train`.
    """
    # smoothing and dropout keep the loss above 0
    config = config.resolved().replace(label_smoothing=0.0, dropout=0.0, max_grad_norm=1.0)
    config.validate()
    run = prepare(config, start(config), needed=("train",))
    processor, prompt = run.processor, run.processor.prompt_ids(config.decoding.prompt)
    batch = few_captions(run)
    wanted = [processor.decode(row[len(prompt) :]) for (row,) in batch.input_ids.tolist()]

    captioner = Captioner(run.model, processor)
    greedy = GenerationSettings(num_beams=1, max_new_tokens=config.optimisation.max_length - len(prompt))
    peak = 1e-3 if run.model.config.text.hidden_size <= 256 else 1e-4
    losses: list[float] = []
    found: list[str] = []
    run.accelerator.print(f"sanity: learning {len(wanted)} captions word for word, at most {seconds:.0f} s")
    began = time.perf_counter()

    def agreed(value: Any) -> Any:
        """The main process's value: all leave the loop at one step."""
        return broadcast_object_list([value])[0]

    while agreed(time.perf_counter() - began < seconds):
        step = train_step(run, [batch], lr=peak * min(1.0, (len(losses) + 1) / 10))
        losses.append((step.loss / batch.num_targets()).item())
        if losses[-1] < 0.1 and len(losses) % 5 == 0:
            run.model.eval()
            with run.accelerator.autocast():
                prompts = [config.decoding.prompt] * len(wanted)
                rows = captioner.caption_pixels(batch.pixel_values, greedy, prompts, with_prompt=False)
            found = [row[0] for row in rows]
        learnt = found == wanted or losses[-1] < 0.005  # below that, more steps change nothing
        if agreed(learnt and len(losses) % 5 == 0):
            break
    took = time.perf_counter() - began
    found, wanted = agreed((found, wanted))

    if found != wanted:
        raise TrainingError(f"sanity: FAILED: {why_not_learnt(wanted, found, losses, took)}")
    run.accelerator.print(
        f"sanity: passed. {len(wanted)} captions came back word for word after {len(losses)} steps, {took:.0f} s, "
        f"loss {losses[0]:.2f} -> {losses[-1]:.3f}"
    )
    return {"steps": len(losses), "seconds": took, "first_loss": losses[0], "last_loss": losses[-1], "captions": found}


def few_captions(run: Run) -> Batch:
    """8 images with different captions, one caption each, through the loader that training uses. Raises TrainingError
    if its captions do not begin as generation does, DataError if one of the images cannot be decoded."""
    prompt, processor = run.config.decoding.prompt, run.processor
    chosen: dict[str, int] = {}
    for index, picture in enumerate(run.train_set.examples):
        chosen.setdefault(normalize_caption(picture.captions[0]), index)
        if len(chosen) == 8:
            break
    few = [run.train_set.examples[i] for i in chosen.values()]
    few = [dataclasses.replace(picture, captions=picture.captions[:1]) for picture in few]
    images = Captions(few, processor, prompt, run.config.optimisation.max_length)
    (batch,) = loader(images, [list(range(len(few)))], 0)
    if batch.bad:
        raise DataError(f"an image cannot be decoded: {next(iter(batch.bad.values()))}")
    ids = processor.prompt_ids(prompt)
    if (batch.input_ids[:, :, : len(ids)] != torch.tensor(ids)).any():
        begins = [processor.tokenizer.id_to_token(i) or i for i in batch.input_ids[0, 0, : len(ids)].tolist()]
        raise TrainingError(
            f"sanity: FAILED: training captions begin with {begins}, generation with ids {ids} ([DEC] first)"
        )
    return batch


def why_not_learnt(wanted: list[str], found: list[str], losses: list[float], seconds: float) -> str:
    """What `sanity` says when the captions did not come back."""
    low = losses[-1] < 0.1
    if low and found:
        pair = next(((w, f) for w, f in zip(wanted, found, strict=False) if w != f), ("", "nothing"))
        wrong = f"{pair[0]!r} came back as {pair[1]!r}: training and generation differ"
        return f"the loss fell to {losses[-1]:.3f}, yet {wrong}"
    slow = len(losses) < 100 or low  # the time was up before they were looked at
    return (
        f"in {len(losses)} steps ({seconds:.0f} s) the loss went from {losses[0]:.2f} to {losses[-1]:.2f}; "
        "below 0.1 was wanted"
        + ("; this machine is too slow to tell" if slow else ": these captions cannot be learnt from these images")
    )


def plan(config: TrainConfig) -> dict[str, Any]:
    """Four optimizer steps: one on the longest captions, which shows the memory, and three on ordinary ones, which
    show the time; and how fast the workers deliver images. Writes the first look at the data as a page, NAME-plan.html.

    Raises:
        TrainingError: memory or disk will not do; the message says what would fit.
        ConfigError, DataError, CheckpointError: as in `train`.
    """
    config = config.resolved()
    config.validate()
    run = prepare(config, start(config))
    if run.accelerator.is_main_process:
        show_first_look(run, run.folder.with_name(f"{run.folder.name}-plan.html"))
    if config.regularisation.augment and run.accelerator.is_main_process:
        show_augmentation(run, run.folder.with_name(f"{run.folder.name}-augmented.png"))
    batch_size, accumulation = config.loading.batch_size, run.accumulation
    # what a batch takes is its number of captions times its longest
    most = config.optimisation.captions_per_image or math.inf
    size = {i: min(most, len(p.captions)) * max(map(len, p.captions)) for i, p in enumerate(run.train_set.examples)}
    by_length = sorted(size, key=lambda i: -size[i])
    order = epoch_order(len(run.train_set), config.optimisation.seed, 0)
    shares = [by_length[:batch_size], *epoch_batches(order, batch_size)[: 3 * accumulation]]
    batches = list(loader(run.train_set, shares, 0))
    times = []
    for window in ([batches[0]] * accumulation, *windows(batches[1:], accumulation)):
        began = time.perf_counter()
        try:
            loss = train_step(run, window, float(config.optimisation.learning_rate or 0)).loss.item()  # waits for it
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            raise TrainingError(f"plan: {out_of_memory(config)}") from error
        if not math.isfinite(loss):
            raise TrainingError(f"plan: the loss is {loss} before any training; is the checkpoint sound?")
        times.append(time.perf_counter() - began)
    result = outlook(run, statistics.median(times[1:]), *loading_rate(run), batches[0].input_ids.shape[2])
    if run.model.gradient_checkpointing and run.accelerator.device.type == "cuda":
        result |= without_checkpointing(run, [batches[0]] * accumulation, times[0])
    return result


def without_checkpointing(run: Run, window: list[Batch], seconds_with: float) -> dict[str, Any]:
    """Whether the longest captions fit into a GPU's memory without gradient checkpointing too, and what that saves of
    the seconds that the first step took with it."""
    device, gb = run.accelerator.device, 1e9
    run.model.gradient_checkpointing = False
    torch.cuda.reset_peak_memory_stats(device)
    try:
        for _ in range(2):  # the first one asks for memory
            began = time.perf_counter()
            train_step(run, window, 0.0).loss.item()
            seconds = time.perf_counter() - began
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        run.accelerator.print("  without gradient checkpointing memory is too small: leave it on")
        return {"fits_without_checkpointing": False}
    finally:
        run.model.gradient_checkpointing = True
    peak, total = memory(device, 0)[0], torch.cuda.mem_get_info(device)[1]
    fits = peak < 0.9 * total  # validation decodes beside the optimizer's state
    run.accelerator.print(
        f"  without gradient checkpointing {peak / gb:.2f} of {total / gb:.1f} GB, {seconds:.2f} s for the longest "
        f"captions instead of {seconds_with:.2f}: "
        + ("it fits, pass --no_gradient_checkpointing" if fits else "too tight, leave it on")
    )
    return {"fits_without_checkpointing": fits, "peak_without_checkpointing_gb": peak / gb}


def loading_rate(run: Run, seconds: float = 1) -> tuple[float, int]:
    """Images a second that this process's workers deliver while nothing else runs, measured for so long, and how many
    workers these are. Each one's first batch is not counted: with it they start."""
    order = epoch_order(len(run.train_set), run.config.optimisation.seed, 0)
    shares = itertools.cycle(epoch_batches(order, run.config.loading.batch_size))
    batches = loader(run.train_set, list(itertools.islice(shares, 1000)), run.num_workers)
    began, images = time.perf_counter(), 0
    for number, batch in enumerate(batches, 1 - max(1, batches.num_workers)):
        if number > 0:
            images += len(batch.image_ids)
        else:
            began = time.perf_counter()
        if images and time.perf_counter() - began > seconds:
            break
    return images / (time.perf_counter() - began), batches.num_workers


def memory(device: torch.device, longest: int) -> tuple[float, str]:
    """The peak in bytes, and what `plan` says of it. On a GPU tensors are not all: torch reserves more than it fills,
    and the CUDA context is no part of its counts."""
    peak = peak_memory(device)
    if device.type != "cuda":
        return peak, f"{peak / 1e9:.2f} GB peak, with the longest captions ({longest} tokens)"
    reserved, (free, total) = torch.cuda.max_memory_reserved(device), torch.cuda.mem_get_info(device)
    others = total - free - torch.cuda.memory_reserved(device)
    return reserved + others, (
        f"{(reserved + others) / 1e9:.2f} of {total / 1e9:.1f} GB, with the longest captions ({longest} tokens): "
        f"{reserved / 1e9:.2f} reserved by torch, {peak / 1e9:.2f} of them filled at the peak, and {others / 1e9:.2f} "
        "of the CUDA context and other processes"
    )


def outlook(run: Run, training_seconds: float, images_a_second: float, workers: int, longest: int) -> dict[str, Any]:
    """What `plan` prints and returns, of a step that trains in so many seconds and images that so many workers load.
    Raises TrainingError if the disk has no room for the checkpoints."""
    images = run.images_per_step / run.accelerator.num_processes  # of this process, as both rates
    loading_seconds = images / images_a_second
    # workers load the next step's images meanwhile; without them the loop does
    seconds_per_step = max(training_seconds, loading_seconds) if workers else training_seconds + loading_seconds
    limit = "training limits" if training_seconds >= loading_seconds else "loading limits: give it more --num_workers"
    peak, told = memory(run.accelerator.device, longest)
    parameters = list(run.model.parameters())
    weights = sum(p.numel() for p in parameters) * 4
    trained = sum(p.numel() for p in parameters if p.requires_grad) * 4
    # each checkpoint: weights, two moments (at most: Muon has one) and, with --ema, the average; one more is written
    # before the oldest goes; and best/, twice while it is replaced
    each = weights + 2 * trained + (weights if run.average else 0)
    disk = (run.config.run.save_total_limit + 1) * each + 2 * weights
    folder = run.folder.resolve()
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    result = {
        "peak_memory_gb": peak / 1e9,
        "loading_images_per_second": images_a_second,
        "training_images_per_second": images / training_seconds,
        "seconds_per_step": seconds_per_step,
        "steps_per_epoch": run.steps_per_epoch,
        "minutes_per_epoch": seconds_per_step * run.steps_per_epoch / 60,
        "total_steps": run.total_steps,
        "total_hours": seconds_per_step * run.total_steps / 3600,
        "disk_gb": disk / 1e9,
        "free_disk_gb": free / 1e9,
    }
    run.accelerator.print(
        f"plan: {run.images_per_step} images a step\n"
        f"  memory  {told}\n"
        f"  images  {images_a_second:.3g}/s are loaded, {images / training_seconds:.3g}/s trained on: {limit}\n"
        f"  time    {seconds_per_step:.2f} s a step, {result['minutes_per_epoch']:.1f} min an epoch "
        f"({run.steps_per_epoch} "
        f"steps), {result['total_hours']:.2f} h for {run.total_steps} steps, validation not counted\n"
        f"  disk    {result['disk_gb']:.2f} GB of {result['free_disk_gb']:.0f} GB free"
    )
    if disk > free:
        raise TrainingError(
            f"plan: {folder} has {free / 1e9:.2f} GB free; the checkpoints need {disk / 1e9:.2f} GB. Use "
            "another --output_dir."
        )
    return result


def out_of_memory(config: TrainConfig) -> str:
    """What would fit, when the device's memory did not."""
    loading, accumulation = config.loading, int(config.optimisation.gradient_accumulation_steps or 1)
    advice = []
    if loading.batch_size > 1:
        half = loading.batch_size // 2
        advice = [
            f"--batch_size {half} --gradient_accumulation_steps {math.ceil(accumulation * loading.batch_size / half)} "
            "(about the same effective batch)"
        ]
    if not config.model.gradient_checkpointing:
        advice.insert(0, "--gradient_checkpointing")
    if config.model.mixed_precision == "no":
        advice.append("--mixed_precision bf16")
    if not config.model.freeze_vision:
        advice.append("--freeze_vision")
    return (
        f"the device's memory is too small for --batch_size {loading.batch_size}. Try {', or '.join(advice)}; --plan "
        "measures it first."
    )
