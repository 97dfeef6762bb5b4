"""What can be proved of a GPU without one (see `emulated_gpu.py`); and the same counts where there is one."""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest
import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from safetensors.torch import load_file

from blip_lite.captioner import Captioner, pick_dtype
from blip_lite.captioning.bulk import caption_files
from blip_lite.cli import main
from blip_lite.data.batches import Batch, Captions, loader
from blip_lite.data.sources.shapes import draw_scene, scene_ids
from blip_lite.errors import TrainingError
from blip_lite.model import graphs
from blip_lite.model.flops import training_flops
from blip_lite.model.generation import STEPS_A_LOOK, GenerationSettings, generate
from blip_lite.processing.picture import Picture
from blip_lite.storage import newest, read_metrics
from blip_lite.training import checkpoint
from blip_lite.training.log import RunLog
from blip_lite.training.loop import SKIPS_IN_A_ROW, epoch, train, train_step
from blip_lite.training.preflight import plan
from blip_lite.training.run import Run
from blip_lite.training.setup import prepare, start
from blip_lite.training.validate import validate
from conftest import ROOT, make_hf, tiny_config
from emulated_gpu import EmulatedGPU
from test_generation import prompts
from test_model import ours

sys.path.insert(0, str(ROOT / "aws_sagemaker"))
import inference

CUDA = torch.device("cuda", 0)
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
SETTINGS = {
    "beams": GenerationSettings(max_new_tokens=12, num_beams=5),
    "late beams": GenerationSettings(max_new_tokens=12, num_beams=3, early_stopping=False, min_new_tokens=2),
    "greedy": GenerationSettings(max_new_tokens=12, num_beams=1),
    "sampling": GenerationSettings(
        max_new_tokens=12, num_beams=1, do_sample=True, top_k=20, top_p=0.9, num_return_sequences=2, seed=1
    ),
}


def banned(ids: Any) -> list[int]:
    return [ids[-1], 7]


def decode(settings: GenerationSettings, device: str, forbidden: Any = None) -> Callable[[], Any]:
    """A call that captions 6 images."""
    model = ours(make_hf(1, sep_bias=2, layers=1)).to(device)
    pixels = torch.randn(6, 3, 32, 32, generator=torch.Generator().manual_seed(1)).to(device)
    prompt = prompts(6, 2).to(device)
    return lambda: generate(model, pixels, prompt, settings, forbidden)


@pytest.mark.parametrize("forbidden", [None, banned])
@pytest.mark.parametrize("name", SETTINGS)
def test_decoding_waits_only_to_look_and_gives_the_tokens_of_the_cpu(name: str, forbidden: Any) -> None:
    settings = SETTINGS[name]
    expected = decode(settings, "cpu", forbidden)()
    with EmulatedGPU() as gpu:
        call = decode(settings, "cuda", forbidden)
        with gpu.counting() as waits:
            found = call()
        sequences, scores = found.sequences.cpu(), found.scores.cpu()
    assert sequences.tolist() == expected.sequences.tolist()
    assert torch.equal(scores, expected.scores)
    assert len({tuple(row).index(3) if 3 in row else 0 for row in sequences[:, 0, 2:].tolist()}) > 2, (
        "nothing ends early"
    )
    reads = {what: sum(n for (w, _), n in waits.items() if w == what) for what, _ in waits}
    assert reads.pop("_local_scalar_dense", 0) + reads.pop("is_nonzero", 0) <= 11 // STEPS_A_LOOK
    assert reads.pop("tolist", 0) <= (12 if forbidden else 0)  # what was said so far, once a step
    assert not reads, waits


@pytest.mark.parametrize("name", ["beams", "late beams", "greedy"])
@pytest.mark.parametrize("images", [1, 6])
def test_a_recorded_step_gives_the_same_captions_and_only_looks(name: str, images: int) -> None:
    """Twice, as the second search of a shape begins in the buffers that the first one left."""
    settings, model = SETTINGS[name], ours(make_hf(1, sep_bias=2, layers=1))
    inputs = [torch.randn(images, 3, 32, 32, generator=torch.Generator().manual_seed(seed)) for seed in (1, 2)]
    expected = [generate(model, pixels, prompts(images, 2), settings) for pixels in inputs]
    with EmulatedGPU() as gpu:
        model = model.to("cuda")
        model.recorded_search = graphs.search
        prompt = prompts(images, 2).to("cuda")
        generate(model, inputs[1].to("cuda"), prompt, settings)  # records
        for pixels, wanted in zip([inputs[0], inputs[1], inputs[0]], [*expected, expected[0]], strict=True):
            pixels = pixels.to("cuda")
            with gpu.counting() as waits:
                found = generate(model, pixels, prompt, settings)
            assert found.sequences.cpu().tolist() == wanted.sequences.tolist()
            torch.testing.assert_close(found.scores.cpu(), wanted.scores, rtol=1e-5, atol=1e-5)
            assert sum(waits.values()) <= 11 // STEPS_A_LOOK and {what for what, _ in waits} <= {"_local_scalar_dense"}
        assert all(search.graph.operators for search in graphs.kept[model].values())


def tiny_run(tmp_path: Path, **changes: Any) -> Run:
    config = tiny_config(tmp_path, **changes).resolved()
    return prepare(config, start(config))


def windows(run: Run, steps: int) -> list[list[Batch]]:
    """Of two batches each, pinned where there is a GPU, as the loader does."""
    batches = list(epoch(run))[: 2 * steps]
    if run.accelerator.device.type == "cuda":
        batches = [batch.pin_memory() for batch in batches]
    return [batches[at : at + 2] for at in range(0, 2 * steps, 2)]


@pytest.mark.parametrize("checkpointing, optimizer", [(False, "adamw"), (True, "adamw"), (False, "muon")])
def test_a_training_step_never_waits_and_gives_the_weights_of_the_cpu(
    tmp_path: Path, checkpointing: bool, optimizer: str
) -> None:
    options = {
        "mixed_precision": "no",
        "batch_size": 3,
        "gradient_checkpointing": checkpointing,
        "label_smoothing": 0.1,
        "optimizer": optimizer,
    }
    here = tiny_run(tmp_path, **options)
    expected = [train_step(here, window, 1e-3) for window in windows(here, 2)]
    with EmulatedGPU() as gpu, mock.patch.object(Accelerator, "device", CUDA):
        run = tiny_run(tmp_path, **options)
        assert run.model.device == CUDA
        batches = windows(run, 2)
        first = train_step(run, batches[0], 1e-3)
        with gpu.counting() as waits:
            second = train_step(run, batches[1], 1e-3)
        assert not waits
        assert first.loss.item() == expected[0].loss.item() and second.loss.item() == expected[1].loss.item()
        weights = {name: value.cpu() for name, value in run.model.state_dict().items()}
    for name, value in here.model.state_dict().items():
        assert torch.equal(weights[name], value), name


def test_pixels_travel_as_bytes_and_nobody_waits_for_them(hf_dir: Path, tmp_path: Path) -> None:
    """Of a batch of the loader, of images that threads decode; what is normalised on the device is that of the CPU."""
    paths = [tmp_path / f"{i}.png" for i in range(5)]
    for scene, path in zip(scene_ids(5, 1), paths, strict=True):
        draw_scene(scene, 48).save(path)
    here = Captioner.from_pretrained(hf_dir, "cpu")
    expected, normalised = here(paths, num_beams=2), here.processor.pixel_values(paths)
    pictures = [Picture(str(path), str(path), ("a red circle",)) for path in paths]
    with EmulatedGPU() as gpu:
        captioner = Captioner.from_pretrained(hf_dir, "cuda")
        (batch,) = loader(Captions(pictures, captioner.processor, "", 40), [list(range(5))], 0)
        assert batch.pixel_values.dtype == torch.uint8
        batch = batch.pin_memory()
        with gpu.counting() as waits:
            pixels = batch.to(CUDA, captioner.processor)[0]
            (from_files,) = captioner.batches(paths, 64)
            again = captioner.processor.normalize(from_files)
        assert not waits and pixels.device == again.device == CUDA and from_files.dtype == torch.uint8
        assert torch.equal(pixels.cpu(), normalised) and torch.equal(again.cpu(), normalised)
        assert captioner(paths, num_beams=2) == expected
        assert [r.captions for r in caption_files(captioner, map(str, paths), num_beams=2)] == [[c] for c in expected]


def test_the_log_reads_the_clock_when_the_gpu_is_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Here time passes only while the host waits for the GPU. And the share of the device's peak is told."""
    with EmulatedGPU(name="NVIDIA A100-SXM4-40GB") as gpu, mock.patch.object(Accelerator, "device", CUDA):
        run = tiny_run(tmp_path, mixed_precision="no", max_train_images=8)
        run.folder.mkdir()
        monkeypatch.setattr("blip_lite.training.log.time.perf_counter", lambda: 10.0 * sum(gpu.waits.values()))
        log, (window,) = RunLog(run), windows(run, 1)
        gpu.waits.clear()
        log.since = run.begun = 0.0
        log.add(*train_step(run, window, 1e-3)[:2], window)
        run.progress.step = 1
        assert not gpu.waits
        log.training(1e-3, torch.zeros((), device=CUDA), 0)
    (told,) = read_metrics(run.folder)
    useful = sum(training_flops(run.model, False, batch.labels) for batch in window)
    assert told["seconds_per_step"] == 10 and told["images_per_second"] == 8 / 10
    assert told["tflops_per_second"] == useful / 10 / 1e12 and told["mfu"] == useful / 10 / 19.5e12
    assert told["memory_gb"] == 3


def test_a_captioner_on_the_second_gpu_leaves_the_first_alone(hf_dir: Path) -> None:
    """Asked for in each way; and as a worker of SageMaker's server that has GPU number 1."""
    image = draw_scene(scene_ids(1, 0)[0], 48)
    options: dict[str, Any] = {"num_beams": 3, "max_new_tokens": 8, "banned_words": ("red",)}
    here = Captioner.from_pretrained(hf_dir, "cpu", "float32")
    expected, score = here([image, image], **options), here.score(image, "a red circle")
    with EmulatedGPU() as gpu, mock.patch.object(gpu, "put", wraps=gpu.put) as put:
        captioner = Captioner.from_pretrained(hf_dir, "cuda:1", "float32")
        assert captioner([image, image], **options) == expected
        assert captioner.score(image, "a red circle") == score
        for device in (1, torch.device("cuda", 1)):
            assert Captioner.from_pretrained(hf_dir, device).model.device == torch.device("cuda", 1)
        context = SimpleNamespace(system_properties={"model_dir": str(hf_dir), "gpu_id": 1})
        assert inference.model_fn(str(hf_dir), context).model.device == torch.device("cuda", 1)
        places = {call.args[1] for call in put.call_args_list}
        assert torch.device("cuda", 1) in places and CUDA not in places
        for gpu_id, index in ((0, 0), (None, 0)):
            context.system_properties["gpu_id"] = gpu_id
            assert inference.model_fn(str(hf_dir), context).model.device == torch.device("cuda", index)
    context.system_properties["gpu_id"] = None
    assert inference.model_fn(str(hf_dir), context).model.device.type == "cpu"


@pytest.mark.parametrize("use", ["caption", "train"])
def test_no_attention_that_plans_for_each_shape(
    use: str, hf_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a GPU only, whose captions meet new shapes all the time."""
    asked: list[bool] = []
    monkeypatch.setattr(torch.backends.cuda, "enable_cudnn_sdp", asked.append)

    def begin(device: str) -> None:
        if use == "caption":
            Captioner.from_pretrained(hf_dir, device)
        else:
            tiny_run(tmp_path, mixed_precision="no")

    begin("cpu")
    assert not asked
    with EmulatedGPU(), mock.patch.object(Accelerator, "device", CUDA):
        begin("cuda")
    assert asked == [False]


def test_the_number_type_is_that_of_the_gpu_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """A newer GPU beside an older one, which is the current one."""
    current = [0]

    @contextlib.contextmanager
    def device(one: torch.device) -> Iterator[None]:
        before, current[0] = current[0], one.index or 0
        yield
        current[0] = before

    monkeypatch.setattr(torch.cuda, "device", device)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: current[0] == 1)
    assert pick_dtype("auto", torch.device("cuda", 1)) == torch.bfloat16
    assert pick_dtype("auto", torch.device("cuda", 0)) == pick_dtype(None, torch.device("cuda")) == torch.float16


def test_validation_begins_when_the_steps_before_it_are_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with EmulatedGPU(), mock.patch.object(Accelerator, "device", CUDA):
        run = tiny_run(tmp_path, mixed_precision="no", max_eval_images=2)
        events: list[str] = []
        clock = time.perf_counter
        monkeypatch.setattr(torch.cuda, "synchronize", lambda device: events.append("done"))
        monkeypatch.setattr(time, "perf_counter", lambda: (events.append("clock"), clock())[1])
        validate(run)
    assert events[:2] == ["done", "clock"]


def test_a_checkpoint_is_written_while_the_loop_goes_on_and_is_that_of_its_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first one is written only when two more steps are done; to the bit it is that of a run on the CPU, and what
    resumes from it ends as that run did."""
    options = {"mixed_precision": "no", "max_steps": 4, "save_every": 1, "save_total_limit": 9, "ema": 0.9}
    here = tiny_config(tmp_path, **options, eval_every=4)
    train(here)
    steps, save, overtaken = [0], checkpoint.save, []

    def counted(*args: Any) -> Any:
        steps[0] += 1
        return train_step(*args)

    def late(run: Path, step: int, *args: Any) -> Path:
        until = time.monotonic() + 20
        while step == 1 and steps[0] < 2 and time.monotonic() < until:
            time.sleep(0.01)
        overtaken.append(steps[0] > step)
        return save(run, step, *args)

    monkeypatch.setattr("blip_lite.training.loop.train_step", counted)
    monkeypatch.setattr(checkpoint, "save", late)
    there = here.replace(output_dir=str(tmp_path / "gpu"))
    with EmulatedGPU(), mock.patch.object(Accelerator, "device", CUDA):
        train(there)
        for step in (1, 2, 3, 4):
            one, other = (tmp_path / run / f"checkpoint-{step:06d}" for run in ("run", "gpu"))
            for name in ("model.safetensors", "state/tensors.safetensors"):
                a, b = load_file(one / name), load_file(other / name)
                assert a.keys() == b.keys() - {"random.cuda.0"}
                assert all(torch.equal(a[key], b[key]) for key in a), (step, name)
        monkeypatch.setattr(checkpoint, "save", save)
        train(there.replace(resume=True, resume_from=str(tmp_path / "gpu" / "checkpoint-000002")))
    assert overtaken[0] and len(overtaken) == 4
    ends = [load_file(tmp_path / run / "checkpoint-000004" / "model.safetensors") for run in ("run", "gpu")]
    assert all(torch.equal(value, ends[1][name]) for name, value in ends[0].items())


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), ZeroDivisionError("a fault of ours")])
def test_a_thread_that_cannot_write_is_heard(
    tmp_path: Path, error: Exception, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(checkpoint, "save", mock.Mock(side_effect=error))
    with EmulatedGPU(), mock.patch.object(Accelerator, "device", CUDA):
        expected = TrainingError if isinstance(error, OSError) else ZeroDivisionError
        with pytest.raises(expected, match="the last checkpoint could not be written|a fault of ours"):
            train(tiny_config(tmp_path, mixed_precision="no", max_steps=2, save_every=1))
    warned = capsys.readouterr().err.count("could not be written")
    assert warned == (2 if isinstance(error, OSError) else 0)


def test_a_second_ctrl_c_waits_for_no_disk_that_is_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begun, over, waited = threading.Event(), threading.Event(), []

    def stuck(*_: Any) -> None:
        begun.set()
        waited.append(not over.wait(20))

    def twice(run: Run, *args: Any) -> Any:
        if run.progress.step:
            assert begun.wait(20)
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)
        return train_step(run, *args)

    monkeypatch.setattr(checkpoint, "save", stuck)
    monkeypatch.setattr("blip_lite.training.loop.train_step", twice)
    with EmulatedGPU(), mock.patch.object(Accelerator, "device", CUDA):
        with pytest.raises(KeyboardInterrupt):
            train(tiny_config(tmp_path, mixed_precision="no", save_every=1))
        over.set()
    assert True not in waited


def test_an_error_of_the_loop_loses_no_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def slow(*args: Any) -> Path:
        time.sleep(3)  # more than `Threads` waits
        return save(*args)

    def fails(run: Run, *args: Any) -> Any:
        return train_step(run, *args) if not run.progress.step else 1 / 0

    save = checkpoint.save
    monkeypatch.setattr(checkpoint, "save", slow)
    monkeypatch.setattr("blip_lite.training.loop.train_step", fails)
    with EmulatedGPU(), mock.patch.object(Accelerator, "device", CUDA), pytest.raises(ZeroDivisionError):
        train(tiny_config(tmp_path, mixed_precision="no", save_every=1))
    assert newest(tmp_path / "run") == tmp_path / "run" / "checkpoint-000001"


def test_no_workers_are_forked_while_a_checkpoint_is_written(tmp_path: Path) -> None:
    """After a validation that was due when the run was resumed."""
    run = tiny_run(tmp_path)
    run.writing = Future()
    threading.Timer(0.2, run.writing.set_result, [None]).start()
    epoch(run)
    assert run.writing is None


def test_steps_that_fp16_leaves_out_are_counted_in_a_row_too(tmp_path: Path) -> None:
    run = tiny_run(tmp_path, batch_size=1)
    run.accelerator.scaler = torch.amp.GradScaler("cpu")
    run.optimizer = AcceleratedOptimizer(run.optimizer.optimizer, scaler=run.accelerator.scaler)
    run.accelerator._optimizers = [run.optimizer]
    run.accelerator.native_amp, run.accelerator.state._mixed_precision = True, "fp16"
    window, unscale = windows(run, 1)[0], run.accelerator.scaler.unscale_
    weight = run.model.text_decoder.cls.predictions.bias
    try:
        train_step(run, window, 1e-3)
        assert (run.skips.take(), run.skips.in_a_row()) == (0, 0)
        before, scale = weight.clone(), run.accelerator.scaler.get_scale()
        with mock.patch.object(
            run.accelerator.scaler, "unscale_", lambda one: (weight.grad.fill_(torch.inf), unscale(one))
        ):
            for _ in range(SKIPS_IN_A_ROW):
                train_step(run, window, 1e-3)
        assert torch.equal(weight, before) and run.accelerator.scaler.get_scale() == scale / 2**SKIPS_IN_A_ROW
        assert run.skips.in_a_row() == SKIPS_IN_A_ROW and run.skips.take() == SKIPS_IN_A_ROW
    finally:
        run.accelerator.state._mixed_precision = "no"


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (torch.AcceleratorError("CUDA error: out of memory", 2), True),
        (RuntimeError("[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory: 9 bytes"), True),
        (MemoryError(), True),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), False),
        (RuntimeError("shapes cannot be multiplied"), False),
    ],
)
def test_memory_that_ran_out_is_one_line_of_advice(
    error: Exception, expected: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("blip_lite.training.loop.train", mock.Mock(side_effect=error))
    command = ["train", "--dataset", "shapes", "--model", "tiny"]
    if not expected:
        with pytest.raises(RuntimeError):
            main(command)
        return
    assert main(command) == 1
    assert "Try --gradient_checkpointing, or --batch_size 8" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("peak", "told"),
    [(3e9, "it fits, pass --no_gradient_checkpointing"), (22e9, "too tight, leave it on"), (None, "is too small")],
)
def test_plan_says_whether_checkpointing_is_needed(
    peak: float | None, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of 24 GB, with so many reserved at the peak of a step without it, or out of memory there."""
    seen: list[bool] = []

    def step(run: Run, *args: Any) -> Any:
        seen.append(run.model.gradient_checkpointing)
        if peak is None and not seen[-1]:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return train_step(run, *args)

    monkeypatch.setattr("blip_lite.training.preflight.train_step", step)
    with EmulatedGPU(), mock.patch.object(Accelerator, "device", CUDA):
        monkeypatch.setattr(torch.cuda, "max_memory_reserved", lambda device=None: peak or 0)
        options = {"mixed_precision": "no", "gradient_checkpointing": True, "num_workers": 0}
        result = plan(tiny_config(tmp_path, **options))
    assert told in capsys.readouterr().out and result["fits_without_checkpointing"] == (peak == 3e9)
    assert seen[0] and not seen[-1]


def test_the_emulated_gpu_keeps_the_rules() -> None:
    with EmulatedGPU() as gpu:
        x, here = torch.arange(4.0, device="cuda"), torch.arange(4.0)
        assert x.device == CUDA and x.is_cuda and (x + 1).device == CUDA and x[:2].view(2, 1).device == CUDA
        assert not here.is_cuda and here.device.type == "cpu"
        for mixed in (lambda: x + here, lambda: x + x.to("cuda:1"), lambda: torch.cat([x, here])):
            with pytest.raises(RuntimeError, match="same device"):
                mixed()
        with pytest.raises(TypeError, match="numpy"):
            x.numpy()
        gpu.waits.clear()
        assert (x * 2).sum() + torch.zeros((), device="cuda") is not None
        x[torch.arange(2, device="cuda")].float()
        here.pin_memory().to("cuda", non_blocking=True)
        assert not gpu.waits
        for waiting in (
            lambda: x[x > 1],
            lambda: bool((x > 1).all()),
            lambda: x.sum().item(),
            lambda: x.nonzero(),
            lambda: torch.tensor(1, device="cuda"),
            lambda: here.to("cuda", non_blocking=True),
            lambda: here.pin_memory().to("cuda"),
            lambda: x.cpu(),
            lambda: x.tolist(),
            lambda: x[torch.tensor([1, 2])],
            lambda: torch.multinomial(x, 1),
        ):
            before = sum(gpu.waits.values())
            waiting()
            assert sum(gpu.waits.values()) > before


def real_waits(call: Callable[[], Any]) -> int:
    """How often a call makes the host wait for the GPU that is here."""
    torch.cuda.synchronize()
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            call()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return sum("synchronizing CUDA operation" in str(one.message) for one in found)


@needs_gpu
@pytest.mark.parametrize("name", SETTINGS)
def test_the_gpu_here_is_waited_for_as_often_as_the_emulated_one(name: str) -> None:
    with EmulatedGPU() as gpu:
        call = decode(SETTINGS[name], "cuda")
        with gpu.counting() as waits:
            call()
    call = decode(SETTINGS[name], "cuda")
    call()
    assert real_waits(call) == sum(waits.values())


@needs_gpu
def test_a_training_step_never_waits_for_the_gpu_here(tmp_path: Path) -> None:
    run = tiny_run(tmp_path)
    first, second = windows(run, 2)
    train_step(run, first, 1e-3)
    assert real_waits(lambda: train_step(run, second, 1e-3)) == 0
