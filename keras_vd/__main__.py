"""The command line: `python -m keras_vd compress --help`."""

from keras_vd.pipeline.command import main

if __name__ == "__main__":
    raise SystemExit(main())
