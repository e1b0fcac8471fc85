"""`stexpr export`: finished runs as one model that others can load."""

import json
from pathlib import Path
from typing import Annotated

import typer

from stexpr.cli import terminal
from stexpr.config.files import write_whole

TIMM = "timm"
ONNX = "model.onnx"


def export(
    runs: Annotated[list[Path], typer.Argument(help="Run folders, or a folder of runs; several make an ensemble.")],
    *,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of the model.")],
    model: Annotated[str | None, typer.Option(help="Label of the model, where the folder holds several.")] = None,
    seed: Annotated[int | None, typer.Option(help="Only the runs of this seed.")] = None,
    cohort: Annotated[Path | None, typer.Option(help="Where the runs' cohort is now.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda …")] = "auto",
    timm: Annotated[bool, typer.Option("--timm", help="Also the backbone alone, in timm's own format.")] = False,
    onnx: Annotated[bool, typer.Option("--onnx", help="Also model.onnx, checked against PyTorch.")] = False,
) -> None:
    """Write finished runs as one model: weights, genes, intervals, training features and a card."""
    from stexpr.train.release import choose_runs, export_runs

    chosen = choose_runs(runs, model=model, seed=seed)
    with terminal.bar() as progress:
        written = export_runs(chosen, output, cohort=cohort, device=device, progress=progress)
    kind = f"an ensemble of {len(written.networks)} networks" if len(written.networks) > 1 else "one network"
    terminal.say(f"{output}: {kind}, {len(written.genes)} genes, {written.n_features} features")
    if written.intervals is not None:
        terminal.say(f"prediction intervals: {written.intervals.label}")
    for note in written.release.notes:
        terminal.say(f"note: {note}")
    if timm:
        from stexpr.models.export.timm_folder import save_timm_backbone

        for i, network in enumerate(written.networks):
            folder = output / TIMM / str(i) if len(written.networks) > 1 else output / TIMM
            save_timm_backbone(network, folder, preprocessing=written.preprocessing)
            terminal.say(f"{folder}: backbone for timm.create_model('local-dir:{folder}', num_classes=0, pretrained=True)")
    if onnx:
        from stexpr.models.export.onnx import save_onnx

        report = save_onnx(written, output / ONNX)
        text = json.dumps({**report.to_dict(), "path": ONNX}, indent=1) + "\n"
        write_whole(output / f"{ONNX}.json", lambda part: part.write_text(text, encoding="utf-8"))
        worst = max(report.difference.values())
        terminal.say(f"{output / ONNX}: {report.bytes / 1e6:.1f} MB, differs from PyTorch by at most {worst:.1e} SD")
        for entry in report.latency:
            batch, torch_ms, onnx_ms = entry.batch_size, entry.torch_ms, entry.onnx_ms
            terminal.say(f"  one thread, {batch} at a time: {onnx_ms:.2f} ms a patch, PyTorch {torch_ms:.2f} ms")
