"""What a run of a slide study leaves behind beside its tables: the head, and the record."""

from dataclasses import asdict
from datetime import UTC, datetime

import torch

from stexpr.config.versions import versions
from stexpr.evaluate.records import SlideRecord
from stexpr.evaluate.slides.results import SlideResults
from stexpr.evaluate.slides.score import score_fold
from stexpr.models.bag.last_blocks import save_tuned
from stexpr.models.bag.model import BagModel
from stexpr.models.bag.saved import LoadedHead, save_head
from stexpr.models.export import load_model
from stexpr.train import folder as names
from stexpr.train.results import device_name
from stexpr.train.slides.job import SlideJob
from stexpr.train.slides.results import FittedTargets
from stexpr.train.slides.training import HeadTraining

__all__ = ["export_head", "slide_record"]


def export_head(job: SlideJob, training: HeadTraining, model: BagModel, fitted: FittedTargets) -> None:
    """Write the head into the run's `model/`, and an encoder that learned along into `model/encoder/`."""
    config, data = job.config, job.data
    bag = next(iter(data.store.bags.values()))
    provenance = {
        "study": config.name,
        "label": config.label,
        "cohort": data.name,
        "cohort_hash": data.hash,
        "protocol": config.protocol.decisive(),
        "seed": config.seed,
        "fold": job.fold.index,
        "training_patients": list(job.fold.train),
        "test_patients": list(job.fold.test),
        "mpp": bag.mpp,
        "patch_px": bag.patch_px,
        "versions": versions(),
    }
    encoder = bag.encoder
    if job.finetune is not None and model.encoder is not None:
        tuned = job.folder / names.MODEL / "encoder"
        save_tuned(tuned, job.finetune.encoder, model.encoder)
        encoder = load_model(tuned).hash
    head = LoadedHead(
        model=model,
        kind=config.model.head,
        instances=config.model.instances,
        genes=tuple(data.store.genes) if config.model.instances in ("expression", "both") else (),
        groups=job.groups,
        covariates=job.coding,
        unlearned=training.unlearned,
        several_slides=config.protocol.several_slides,
        encoder=encoder,
        fitted=tuple(asdict(target) for target in fitted.targets.values()),
        baseline=fitted.baseline,
        provenance=provenance,
    )
    save_head(job.folder / names.MODEL, head, widths=config.model.widths, dropout=config.model.dropout)


def slide_record(job: SlideJob, training: HeadTraining, model: BagModel, results: SlideResults) -> SlideRecord:
    """Gather what the run was and what it scored; nothing of the machine but the kind of device and versions."""
    config, data, fold = job.config, job.data, job.fold
    primary, values = score_fold(results, config.protocol)
    test_rows = job.examples.rows(dict.fromkeys(fold.test_sections))
    notes = data.describe().splitlines()[1:]
    notes += [f"{name}: all training patients of the fold are alike, so nothing is predicted" for name in training.unlearned]
    notes += [f"{target.name}: {note}" for target in results.targets.values() for note in target.notes]
    model_values = config.model.described()
    return SlideRecord.model_validate(
        {
            "study": config.name,
            "model_label": config.label,
            "kind": config.model.role,
            "model": {**model_values, "encoder": config.encoder_name},
            "settings": {"training": config.training.described()},
            "protocol": config.protocol.decisive(),
            "protocol_hash": config.protocol.hash,
            "cohort": {
                "name": data.name,
                "hash": data.hash,
                "patients": data.patients,
                "details": {"targets": ", ".join(data.cohort.targets), "sites": len(set(data.site_of.values()))},
            },
            "split_hash": job.split_hash,
            "fold": {
                "index": fold.index,
                "test_patients": tuple(fold.test),
                "validation": "patient" if fold.inner else "epochs",
            },
            "bags": {
                "hash": data.store.hash,
                "encoder": config.encoder_name,
                "encoder_hash": next(iter(data.store.bags.values())).encoder,
                "width": job.examples.width,
            },
            "config_hash": job.folder.name,
            "seed": config.seed,
            "n": {
                "patients": len(fold.test),
                "training_patients": len(fold.train),
                "slides": len(fold.test_sections),
                "patches": job.examples.n_patches(test_rows),
                "targets": len(results.targets),
            },
            "epochs": {"planned": config.training.epochs, "chosen": training.chosen_epochs},
            "parameters": sum(parameter.numel() for parameter in model.parameters()),
            "values": {name: value.model_dump() for name, value in values.items()},
            "primary": primary,
            "notes": tuple(notes),
            "execution": {"processes": 1, "threads": torch.get_num_threads()},
            "wall_time_s": round(training.seconds, 3),
            "device": device_name(config.runtime.device),
            "versions": versions(),
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
        }
    )
