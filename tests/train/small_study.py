"""A study small enough to train in a second or two; `cohort` is to be filled in."""

STUDY = """
name: small
cohort: {cohort}
protocol: {{panel: {{n_main: 12, min_detection: 0.05}}, validation: {{fraction: 0.5}}}}
input: {{window_px: 24}}
model: {{kind: network, backbone: tiny}}
training: {{epochs: 3, batch_size: 16, lr: 3e-3, warmup_epochs: 0.5}}
runtime: {{device: cpu}}
"""
