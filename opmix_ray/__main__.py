"""`python -m opmix_ray`: the command line."""

from opmix_ray.cli import main

if __name__ == "__main__":
    main()
