"""The directive `command-line`: every verb of `stexpr` with its arguments, read from the program itself."""

import re
from collections.abc import Iterator
from typing import Any

import typer.main
from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective


class CommandLine(SphinxDirective):
    """A section for each verb."""

    def run(self) -> list[nodes.Node]:
        """Return the sections."""
        from stexpr.cli import app

        return [self._section(name, verb) for name, verb in verbs(typer.main.get_command(app), "stexpr")]

    def _section(self, name: str, verb: Any) -> nodes.section:
        section = nodes.section(ids=[nodes.make_id(name)], names=[nodes.fully_normalize_name(name)])
        section += nodes.title(name, name)
        section += paragraph(verb.help or "")
        context = typer.Context(verb, info_name=name)
        usage = " ".join([name, *verb.collect_usage_pieces(context)])
        section += nodes.literal_block(usage, usage, language="none")
        entries = nodes.definition_list()
        for option in verb.params:
            written, said = option.get_help_record(context) or ("", "")
            if written and option.name != "help":
                item = nodes.definition_list_item()
                item += [nodes.term("", "", nodes.literal("", written)), nodes.definition("", paragraph(said))]
                entries += item
        if entries.children:
            section += entries
        self.state.document.note_explicit_target(section)
        return section


def verbs(command: Any, name: str) -> Iterator[tuple[str, Any]]:
    """Yield the verbs below a command, with their full names."""
    if not hasattr(command, "commands"):
        yield name, command
        return
    for key in sorted(command.commands):
        yield from verbs(command.commands[key], f"{name} {key}")


def paragraph(text: str) -> nodes.paragraph:
    """Make a paragraph; what stands between backticks is code."""
    parts = re.split(r"`([^`]+)`", " ".join(text.split()))
    inline = [nodes.literal("", part) if i % 2 else nodes.Text(part) for i, part in enumerate(parts)]
    return nodes.paragraph("", "", *inline)


def setup(app: Sphinx) -> dict[str, Any]:
    """Make the directive known."""
    app.add_directive("command-line", CommandLine)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
