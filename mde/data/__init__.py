"""What a model sees: token stores, and batches of a mixture of them."""
