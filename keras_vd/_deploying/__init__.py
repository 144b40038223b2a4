"""How models are written for the runtimes that serve them.

`interface` knows what goes into a model and comes out, `readers` how the
runtimes open a file, `writing` how a file takes its place only once it is known
to be right. `keras_files`, `saved_models`, `packed`, `litert` and `onnx_files`
write one format each; `coding` and `stripping` make files small; `measuring`,
`worker` and `report` compare them.
"""
