"""The parts of a suite, one file each, found by their names: `run(trial) -> list[Cell]`."""
