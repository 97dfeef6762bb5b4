"""Before hours are spent: can it learn (`sanity`), and will it fit (`plan`)?"""

from __future__ import annotations

import dataclasses
import math
import shutil
import statistics
import time
from pathlib import Path
from typing import Any

import torch

from blip_lite.captioner import Captioner
from blip_lite.config import TrainConfig
from blip_lite.data import Captions, DataError, epoch_batches, epoch_order, loader
from blip_lite.generation import GenerationSettings
from blip_lite.processing import normalize_caption
from blip_lite.runlog import peak_memory
from blip_lite.training import TrainingError, build_optimizer, load, start, windows


def sanity(config: TrainConfig, seconds: float = 60) -> dict[str, Any]:
    """Can this model, on this data, learn 8 captions word for word? Takes the same path as training does: a wrong
    start token, mask, label or image path shows here, in a minute, and not after a night.

    Returns:
        Steps, seconds, first and last loss, and the captions that came back.

    Raises:
        TrainingError: it could not; the message says what went wrong.
        ConfigError, DataError, CheckpointError: as in `train`.
    """
    config = config.resolved()
    config.validate()
    accelerator = start(config)
    _, model, train_set = load(config, accelerator)
    processor, device = train_set.processor, accelerator.device

    # 8 images with different captions, one caption each, through the loader that training uses.
    chosen: dict[str, int] = {}
    for index, example in enumerate(train_set.examples):
        chosen.setdefault(normalize_caption(example.captions[0]), index)
        if len(chosen) == 8:
            break
    few = [train_set.examples[i] for i in chosen.values()]
    few = [dataclasses.replace(example, captions=example.captions[:1]) for example in few]
    (batch,) = loader(Captions(few, processor, config.prompt, config.max_length), [list(range(len(few)))], 0)
    if batch.bad:
        raise DataError(f"an image cannot be decoded: {next(iter(batch.bad.values()))}")
    prompt = processor.prompt_ids(config.prompt)
    if (batch.input_ids[:, :, : len(prompt)] != torch.tensor(prompt)).any():
        begins = [processor.tokenizer.id_to_token(i) or i for i in batch.input_ids[0, 0, : len(prompt)].tolist()]
        raise TrainingError(
            f"sanity: FAILED: training captions begin with {begins}, generation with ids {prompt} ([DEC] first)"
        )
    wanted = [processor.decode(row[len(prompt) :]) for (row,) in batch.input_ids.tolist()]

    model.to(device).train()
    captioner, inputs = Captioner(model, processor), batch.to(device)
    greedy = GenerationSettings(num_beams=1, max_new_tokens=config.max_length - len(prompt))
    peak = 1e-3 if model.config.text.hidden_size <= 256 else 1e-4
    optimizer = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), lr=peak)
    losses: list[float] = []
    found: list[str] = []
    accelerator.print(f"sanity: learning {len(few)} captions word for word, at most {seconds:.0f} s")
    begun = time.perf_counter()
    while time.perf_counter() - begun < seconds:
        optimizer.param_groups[0]["lr"] = peak * min(1.0, (len(losses) + 1) / 10)
        with accelerator.autocast():
            loss, targets = model(*inputs)
        (loss / targets).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append((loss / targets).item())
        if losses[-1] < 0.1 and len(losses) % 5 == 0:
            model.eval()
            with accelerator.autocast():
                rows = captioner.caption_pixels(
                    batch.pixel_values, greedy, [config.prompt] * len(few), with_prompt=False
                )
            model.train()
            found = [row[0] for row in rows]
            if found == wanted or losses[-1] < 0.005:  # learnt by heart: more steps change nothing
                break
    took = time.perf_counter() - begun

    if found != wanted:
        if losses[-1] < 0.1:
            said = next(((w, f) for w, f in zip(wanted, found, strict=False) if w != f), ("", "nothing"))
            reason = f"the loss fell to {losses[-1]:.3f}, yet {said[0]!r} came back as {said[1]!r}: training and generation differ"
        else:
            reason = f"in {len(losses)} steps ({took:.0f} s) the loss went from {losses[0]:.2f} to {losses[-1]:.2f}; below 0.1 was wanted"
            slow = len(losses) < 100
            reason += (
                "; this machine is too slow to tell" if slow else ": these captions cannot be learnt from these images"
            )
        raise TrainingError(f"sanity: FAILED: {reason}")
    accelerator.print(
        f"sanity: passed. {len(few)} captions came back word for word after {len(losses)} steps, {took:.0f} s, "
        f"loss {losses[0]:.2f} -> {losses[-1]:.3f}"
    )
    return {"steps": len(losses), "seconds": took, "first_loss": losses[0], "last_loss": losses[-1], "captions": found}


def plan(config: TrainConfig) -> dict[str, Any]:
    """Four optimizer steps: one on the longest captions, which shows the memory, and three on ordinary ones, which
    show the time.

    Raises:
        TrainingError: memory or disk will not do; the message says what would fit.
        ConfigError, DataError, CheckpointError: as in `train`.
    """
    config = config.resolved()
    config.validate()
    accelerator = start(config)
    _, model, train_set = load(config, accelerator)
    accumulation = int(config.gradient_accumulation_steps or 1)
    # what a batch takes is its number of captions times its longest
    size = {i: len(e.captions) * max(map(len, e.captions)) for i, e in enumerate(train_set.examples)}
    by_length = sorted(size, key=lambda i: -size[i])
    order = epoch_order(len(train_set), config.seed, 0)
    shares = [by_length[: config.batch_size], *epoch_batches(order, config.batch_size)[: 3 * accumulation]]
    batches = list(loader(train_set, shares, 0))
    model.to(accelerator.device).train()
    ddp, optimizer = accelerator.prepare(model, build_optimizer(model, config))
    times = []
    for window in ([batches[0]] * accumulation, *windows(batches[1:], accumulation)):
        begun = time.perf_counter()
        try:
            for batch in window:
                loss, targets = ddp(*batch.to(accelerator.device), config.label_smoothing)
                accelerator.backward(loss / targets.clamp(min=1))
            accelerator.clip_grad_norm_(ddp.parameters(), math.inf)
            optimizer.step()
            optimizer.zero_grad()
            last_loss = loss.item()  # waits for the device
        except (RuntimeError, MemoryError) as error:  # torch.OutOfMemoryError, and the CPU's plain RuntimeError
            if not isinstance(error, (torch.OutOfMemoryError, MemoryError)) and "allocate" not in str(error):
                raise
            tip = "--gradient_checkpointing, " if not config.gradient_checkpointing else ""
            half = max(1, config.batch_size // 2)
            raise TrainingError(
                f"plan: out of memory with --batch_size {config.batch_size}. Try {tip}--batch_size {half} "
                f"--gradient_accumulation_steps {accumulation * config.batch_size // half}, or --freeze_vision."
            ) from error
        if not math.isfinite(last_loss):
            raise TrainingError(f"plan: the loss is {last_loss} before any training; is the checkpoint sound?")
        times.append(time.perf_counter() - begun)
    seconds_per_step = statistics.median(times[1:])
    images = config.batch_size * accelerator.num_processes * accumulation
    steps_per_epoch = math.ceil(len(train_set) / images)
    total_steps = config.max_steps or steps_per_epoch * int(config.epochs or 0)
    weights = sum(p.numel() for p in model.parameters()) * 4
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad) * 4
    # each checkpoint: weights and two moments; one more is written before the oldest goes; and best/, twice while it is replaced
    disk = (config.save_total_limit + 1) * (weights + 2 * trained) + 2 * weights
    folder = Path(str(config.output_dir)).resolve()
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    result = {
        "peak_memory_gb": peak_memory(accelerator.device) / 1e9,
        "seconds_per_step": seconds_per_step,
        "steps_per_epoch": steps_per_epoch,
        "minutes_per_epoch": seconds_per_step * steps_per_epoch / 60,
        "total_steps": total_steps,
        "total_hours": seconds_per_step * total_steps / 3600,
        "disk_gb": disk / 1e9,
        "free_disk_gb": free / 1e9,
    }
    accelerator.print(
        f"plan: {images} images a step\n"
        f"  memory  {result['peak_memory_gb']:.2f} GB peak, with the longest captions ({batches[0].input_ids.shape[2]} tokens)\n"
        f"  time    {seconds_per_step:.2f} s a step, {result['minutes_per_epoch']:.1f} min an epoch ({steps_per_epoch} steps), "
        f"{result['total_hours']:.2f} h for {total_steps} steps, validation not counted\n"
        f"  disk    {result['disk_gb']:.2f} GB of {result['free_disk_gb']:.0f} GB free"
    )
    if disk > free:
        raise TrainingError(
            f"plan: {folder} has {free / 1e9:.2f} GB free; the checkpoints need {disk / 1e9:.2f} GB. Use another --output_dir."
        )
    return result
