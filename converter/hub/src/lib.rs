//! Sources of models: Hugging Face, ModelScope and local directories.
