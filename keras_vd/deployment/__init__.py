"""Writers of plain models, each file read back before it takes its place.

`writer` is the skeleton of all of them, `interface` knows what goes into a
model and comes out, and `readers` how the runtimes open a file. `keras_files`,
`archive`, `saved_models`, `packed`, `litert` and `onnx_files` write one format
each; `archive_content`, `coding`, `configs`, `entropy` and `stripping` make
files small; `measuring` and `comparison` compare them.
"""

from keras_vd.deployment.archive import load_archive, save_archive
from keras_vd.deployment.comparison import deployment_report
from keras_vd.deployment.keras_files import save_compressed
from keras_vd.deployment.litert import export_litert
from keras_vd.deployment.onnx_files import export_onnx
from keras_vd.deployment.packed import export_packed
from keras_vd.deployment.saved_models import export_saved_model

__all__ = [
    "deployment_report",
    "export_litert",
    "export_onnx",
    "export_packed",
    "export_saved_model",
    "load_archive",
    "save_archive",
    "save_compressed",
]
