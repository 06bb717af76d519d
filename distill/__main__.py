"`python -m distill`, for launchers such as `accelerate launch -m distill fit …`; written by hand, for no notebook exports it"
from distill.cli import main

if __name__ == '__main__': main()
