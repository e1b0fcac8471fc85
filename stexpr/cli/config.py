"""`stexpr config`: what a study says, and what it may say."""

import json
from typing import Annotated

import typer

from stexpr.cli import terminal

app = typer.Typer(help="Show resolved configurations and their schema.", no_args_is_help=True)


@app.command()
def show(
    study: Annotated[str, typer.Argument(help="A study: a YAML file, or the name of one that comes with stexpr.")],
    overrides: Annotated[list[str] | None, typer.Argument(help="key=value, such as training.lr=1e-3")] = None,
) -> None:
    """Print a study with every default filled in."""
    import yaml

    from stexpr.config import load_study

    terminal.say(yaml.safe_dump(load_study(study, overrides or []).model_dump(mode="json"), sort_keys=False).rstrip())


@app.command()
def schema() -> None:
    """Print the JSON schema of a study, for editors that complete and check YAML."""
    from stexpr.config import StudyConfig

    terminal.say(json.dumps(StudyConfig.model_json_schema(), indent=2))
