"""A mutex for data pipelines: the program `serializer`, from Python."""
