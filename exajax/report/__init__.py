"""Shows results: terminal, TensorBoard, Prometheus, plots and a page."""
