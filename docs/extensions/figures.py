"""Figures of the tutorials: what a code block ends with, as a notebook shows it."""

from typing import Any

from sphinx_gallery.scrapers import figure_rst, matplotlib_scraper

DPI = 110


def scrape(block: Any, block_vars: dict[str, Any], gallery_conf: dict[str, Any]) -> str:
    """Save the figure that a block ends with, else those that pyplot holds.

    The figures of `stexpr.pl` belong to no window, so pyplot does not know them.
    """
    import matplotlib.pyplot as plt
    from matplotlib.figure import Figure

    last = block_vars["example_globals"].get("___")
    block_vars["example_globals"]["___"] = None  # it stays when a later block ends with no value, and is drawn once
    if not isinstance(last, Figure):
        return str(matplotlib_scraper(block, block_vars, gallery_conf, dpi=DPI, bbox_inches="tight"))
    plt.close(last)  # pyplot may hold it too
    path = next(block_vars["image_path_iterator"])
    last.savefig(path, dpi=DPI, bbox_inches="tight")
    title = last.get_suptitle() or next((axes.get_title() for axes in last.axes if axes.get_title()), "figure")
    return str(figure_rst([path], gallery_conf["src_dir"], title))
