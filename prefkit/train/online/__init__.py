"""Online training by rewards: sample with the pipeline, score the samples, learn from them, and repeat."""
