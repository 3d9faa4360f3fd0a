"""`python -m pytorch_course` is the `pytorch-course` command."""
import sys

from pytorch_course.going_modular import main

sys.exit(main())
