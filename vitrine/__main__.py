"""`vitrine`, also as `python -m vitrine`."""

from vitrine.cli import app


def main() -> None:
    """Run the command line."""
    app()


if __name__ == "__main__":
    main()
