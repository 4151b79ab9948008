"""`tfseq serve`: a development server with TF Serving's REST and gRPC APIs; it sees SavedModel folders, no class of a model."""
