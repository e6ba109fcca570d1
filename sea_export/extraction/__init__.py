"""The edit that lies between two checkpoints, where there is one."""
