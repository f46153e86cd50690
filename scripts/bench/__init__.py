"""What scripts/benchmark.py is made of. The parent process (`sections`, `contest`, `limits`, `table`, `plot`) imports
neither torch nor a network; the workers (`worker`) import what their side needs and nothing of the other's."""
