"""What a run would take, found out before anything is loaded: memory, operations, time."""
