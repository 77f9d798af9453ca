"""Classifiers on the pooled features of a frozen encoder, for the probes of pre-training and fine-tuning."""
