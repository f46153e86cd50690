"""A reader that takes far more memory than its file has bytes, and gives it back."""

from fuzzing.cases import Case


def case(chance, folder):
    path = folder / "a"
    path.write_bytes(b"ab")
    return Case(path, lambda: len(b"x" * 400_000_000), (ValueError,), str(path))


def warm(folder):
    pass
