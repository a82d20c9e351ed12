"""`python -m train`: from pictures to an adapter (or a mini base model, or an autoencoder)."""
