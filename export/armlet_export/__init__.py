"""Quantisation-aware export, the gate, the certificate and the demo."""
