"""Evaluation: decoding, marks with intervals, diversity, distance from the teacher, lm-evaluation-harness."""
