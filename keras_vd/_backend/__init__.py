"""What stands between the library, Keras and its backends."""
