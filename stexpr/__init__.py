"""stexpr predicts spatial gene expression from H&E, compares models honestly and reuses the trained encoder.

Every public name is imported when first used, so `import stexpr` costs nothing.
"""

import lazy_loader

__version__ = "0.1.0"

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submodules=["pl", "tl"],
    submod_attrs={
        "config": ["StudyConfig", "load_study"],
        "config.any_study": ["load_any_study"],
        "config.slides": ["SlideStudyConfig", "SlideTables"],
        "data.adopt": ["adopt"],
        "data.bags": ["Bag", "read_bag"],
        "data.cards": ["DataCard", "list_cards", "load_card"],
        "data.convert": ["convert", "read_any"],
        "data.prepare": ["prepare"],
        "data.readers": ["read_folder"],
        "data.spatialdata": ["from_spatialdata", "to_spatialdata"],
        "data.store": ["PreparedCohort"],
        "errors": ["StexprError"],
        "evaluate.hest.bench": ["hest_bench"],
        "evaluate.inflation": ["inflation"],
        "evaluate.leaderboard": ["Leaderboard", "build_leaderboard"],
        "evaluate.slides.board": ["SlideBoard", "build_slide_board"],
        "inference.bags": ["embed_slide"],
        "inference.explain": ["explain_slide"],
        "inference.slide": ["predict_slide"],
        "models.bag.saved": ["LoadedHead", "load_head"],
        "models.export": ["load_model"],
        "models.export.encoder": ["load_encoder"],
        "train.release": ["choose_runs", "export_runs"],
        "train.slides.deploy": ["deploy"],
        "train.study": ["run_study"],
    },
)
