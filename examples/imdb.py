"""Learn which words, units and gates a sentiment model needs.

    python examples/imdb.py --dataset synthetic
    TFDS_DATA_DIR=... python examples/imdb.py

The code and its options are those of `experiments/imdb`.
"""

from _launch import launch

if __name__ == "__main__":
    launch("imdb")
