"""What the benchmarks share: models, measurements, reports."""
