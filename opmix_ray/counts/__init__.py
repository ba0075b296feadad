"""What can be said about mixtures by counting words in the data, without a pass of the model."""
