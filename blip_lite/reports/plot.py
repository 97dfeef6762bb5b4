"""The curves of runs as one picture: `blip-lite plot runs/a runs/b --output curves.png`."""

from __future__ import annotations

from pathlib import Path

from blip_lite.errors import ConfigError
from blip_lite.storage import read_metrics

CURVES = {
    "loss": "training loss",
    "val_loss": "validation loss",
    "val_bleu": "validation sacreBLEU",
    "lr": "learning rate",
}


CURVES |= {"grad_norm": "gradient norm", "images_per_second": "images a second"}


def plot(runs: list[Path], output: Path) -> None:
    """Draw `metrics.jsonl` of each run: loss, validation, learning rate, gradient norm, speed, against the step.

    Raises:
        ConfigError: a run has no readable metrics.jsonl.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(2, 3, figsize=(13, 6.5))
    for run in runs:
        lines = read_metrics(run)
        if not lines:
            raise ConfigError(f"{run}: no metrics.jsonl here, or no line of it can be read")
        for axis, (name, title) in zip(axes.flat, CURVES.items(), strict=True):
            points = [(line["step"], line[name]) for line in lines if line.get(name) is not None]
            axis.plot(
                *zip(*points, strict=True) if points else ((), ()),
                marker="." if len(points) < 30 else "",
                label=run.name,
            )
            axis.set_title(title, fontsize=10)
            axis.set_xlabel("step", fontsize=8)
            axis.grid(alpha=0.3)
    axes.flat[0].legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(output, dpi=110)
