"""Self-supervised pretraining, fine-tuning and evaluation."""
