"""What a run will need before anything is loaded: parameters, memory, disk and time, estimated."""
