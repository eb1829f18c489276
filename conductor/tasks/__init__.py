"""Long work in steps: the runner, and one file for each kind of task, listed in `kinds`."""
