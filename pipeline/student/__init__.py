"""The student stage: trains one student from a logit cache at one alpha."""
