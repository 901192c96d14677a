"""The stages of smoothkd: teacher, student, evaluation. They meet only on disk."""
