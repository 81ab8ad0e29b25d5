//! The file tree of a model, and how a read becomes pieces.
