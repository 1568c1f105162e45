"""Where the metrics of a run go: console, JSON lines, TensorBoard, Prometheus."""
