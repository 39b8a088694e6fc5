"""Automated strategy search for fine-tuning large language models with DeepSpeed."""
