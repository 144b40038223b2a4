"""How the pictures of the course look."""

import logging

import matplotlib.pyplot as plt
from matplotlib_inline.backend_inline import set_matplotlib_formats

# Of all that is no curve: it can be read on white and on black.
GREY = "#7a7a7a"


def set_style() -> None:
    """Draw sharp pictures in letters for phones, and print no warnings.

    They have no background, as pages may be light or dark.
    """
    set_matplotlib_formats("svg")
    # In a notebook TensorFlow prints its warnings among the outputs.
    logging.getLogger("tensorflow").addFilter(
        lambda record: record.levelno >= logging.ERROR
    )
    plt.rcParams.update(
        {
            "axes.spines.right": False,
            "axes.spines.top": False,
            "axes.edgecolor": GREY,
            "axes.facecolor": "none",
            "axes.labelcolor": GREY,
            "figure.facecolor": "none",
            "figure.figsize": (7, 3.4),
            "figure.constrained_layout.use": True,
            "font.size": 12,
            "legend.frameon": False,
            "text.color": GREY,
            "xtick.color": GREY,
            "ytick.color": GREY,
        }
    )
