"""Loggers of metrics: console, JSON lines, TensorBoard, Prometheus."""
